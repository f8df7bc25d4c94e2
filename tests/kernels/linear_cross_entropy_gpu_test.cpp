// linear_cross_entropy on a GPU against the textbook.

#include "kernels/common/cuda/device_buffer.h"
#include "kernels/gemm/cuda.h"
#include "kernels/linear_cross_entropy/cuda.h"
#include "tests/kernels/linear_cross_entropy_cases.h"
#include "tests/support/gpu.h"

namespace paperlab::kernels::cross_entropy_test {
namespace {

class GpuLinearCrossEntropyTest : public test::GpuTest {};

using Buffer = DeviceBuffer<std::byte>;

// Runs both passes on the device; results come back into the case.
void run(Case& of) {
  Buffer x(of.x);
  Buffer weight(of.weight);
  Buffer bias(of.bias);
  DeviceBuffer<std::int64_t> target(of.target);
  Buffer grad_loss(of.grad_loss);
  Bytes* results[] = {&of.loss, &of.lse, &of.grad_x, &of.grad_weight, &of.grad_bias};
  std::vector<Buffer> buffers;
  for (const Bytes* result : results) {
    buffers.emplace_back(*result);
  }
  LinearCrossEntropy problem = of.problem();
  problem.x = x.data();
  problem.weight.data = weight.data();
  problem.bias = problem.bias == nullptr ? nullptr : bias.data();
  problem.target = target.data();
  const LinearCrossEntropyGradients gradients = {
      grad_loss.data(), buffers[1].data(), buffers[2].data(), buffers[3].data(), buffers[4].data()};
  const GemmCuda products = gemm_on_cuda();
  Buffer forward(static_cast<std::size_t>(linear_cross_entropy_cuda_workspace(problem, products)));
  Buffer backward(static_cast<std::size_t>(
      linear_cross_entropy_backward_cuda_workspace(problem, gradients, products)));
  linear_cross_entropy_cuda(problem, {buffers[0].data(), buffers[1].data()}, products,
                            forward.data(), {});
  linear_cross_entropy_backward_cuda(problem, gradients, products, backward.data(), {});
  for (std::size_t i = 0; i < buffers.size(); ++i) {
    buffers[i].download(*results[i], {});
  }
  PAPERLAB_CUDA_CHECK(cudaStreamSynchronize(nullptr));
}

TEST_F(GpuLinearCrossEntropyTest, EveryShapeIsWithinTheBound) {
  for (const DType dtype : kCudaDTypes) {
    int i = 0;
    for (const Sizes sizes :
         {Sizes{1, 1, 1}, {2, 5, 15}, {5, 7, 17}, {13, 9, 65}, {33, 64, 128}, {300, 8, 2100}}) {
      for (const Reduction reduction : kReductions) {
        ++i;
        Options options;
        options.has_bias = i % 2 == 0;
        options.reduction = reduction;
        options.z_loss = i % 5 < 2 ? 0.0 : 0.05;
        options.is_turned = i % 4 == 0;
        options.gap = i % 7;
        options.ignore_index = i % 3 == 0 ? sizes.v - 1 : -100;
        Case of(dtype, sizes, options);
        Case again = of;
        run(of);
        run(again);
        EXPECT_EQ(of.loss, again.loss);
        EXPECT_EQ(of.grad_x, again.grad_x);
        EXPECT_EQ(of.grad_weight, again.grad_weight);
        EXPECT_EQ(of.grad_bias, again.grad_bias);
        if (sizes.v > 1 || options.ignore_index < 0) {  // else no row counts
          expect_close(of, cuda_rounding(dtype));
        }
      }
    }
  }
}

TEST_F(GpuLinearCrossEntropyTest, SeveralChunksOfRowsAndColumnsAreWithinTheBound) {
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16}) {
    Case of(dtype, {8200, 1, 4200}, {});
    run(of);
    expect_close(of, cuda_rounding(dtype));
  }
}

TEST_F(GpuLinearCrossEntropyTest, ABadTargetStaysInItsRow) {
  Options options;
  options.reduction = Reduction::kNone;
  Case of(DType::kFloat32, {40, 6, 70}, options);
  of.target[8] = 70;
  run(of);
  for (std::int64_t row = 0; row < 40; ++row) {
    EXPECT_EQ(std::isnan(of.statistic(of.loss, row)), row == 8);
    EXPECT_EQ(std::isnan(load_number(of.grad_x.data(), of.dtype, row * 6)), row == 8);
  }
}

}  // namespace
}  // namespace paperlab::kernels::cross_entropy_test
