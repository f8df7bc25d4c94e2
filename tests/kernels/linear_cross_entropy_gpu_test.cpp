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

TEST_F(GpuLinearCrossEntropyTest, EveryShapeIsWithinTheBoundAndHasTheSameBitsInEveryRun) {
  std::vector<Sizes> all = cuda_sizes();
  all.push_back({33, 64, 128});
  all.push_back({300, 8, 2100});
  expect_close_of_all(all, [](Case& of, int) {
    Case again = of;
    run(of);
    run(again);
    EXPECT_TRUE(of.has_same_results(again));
  });
}

TEST_F(GpuLinearCrossEntropyTest, SeveralChunksOfRowsAndColumnsAreWithinTheBound) {
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16}) {
    Case of(dtype, {8200, 1, 4200}, {});
    run(of);
    expect_close(of, cuda_rounding(dtype));
  }
}

TEST_F(GpuLinearCrossEntropyTest, ANanAndABadTargetStayInTheirRows) {
  for (const DType dtype : kCudaDTypes) {
    expect_wrong_rows_alone(dtype, run);
  }
}

}  // namespace
}  // namespace paperlab::kernels::cross_entropy_test
