// The normalization on a GPU. Compiled in builds with CUDA alone.

#include <gtest/gtest.h>

#include "kernels/rms_norm/cuda.h"
#include "paperlab/core/error.h"
#include "tests/kernels/rms_norm_cases.h"
#include "tests/support/device_memory.h"
#include "tests/support/gpu.h"

namespace paperlab::kernels {
namespace {

using rms_norm_cases::Case;
using rms_norm_cases::expect_right;

class GpuRmsNormTest : public test::GpuTest {};

void run(Case& of) {
  std::vector<std::span<std::byte>> host;
  for (test::RowTensor* tensor : of.tensors()) {
    host.emplace_back(tensor->bytes());
  }
  test::DeviceMemory device(host);
  RmsNormForward forward = of.forward();
  device.move(forward.x);
  device.move(forward.residual);
  device.move(forward.weight);
  device.move(forward.y);
  device.move(forward.sum);
  device.move(forward.inverse_rms);
  auto scratch = test::nan_workspace(rms_norm_cuda_workspace(forward));
  rms_norm_cuda(forward, scratch.data(), {});
  RmsNormBackward backward = of.backward();
  device.move(backward.grad_y);
  device.move(backward.grad_sum);
  device.move(backward.s);
  device.move(backward.weight);
  device.move(backward.inverse_rms);
  device.move(backward.grad_x);
  device.move(backward.grad_weight);
  auto grad_scratch = test::nan_workspace(rms_norm_backward_cuda_workspace(backward));
  rms_norm_backward_cuda(backward, grad_scratch.data(), {});
  device.download();
}

constexpr DType kDTypes[] = {DType::kFloat32, DType::kBFloat16, DType::kFloat16, DType::kFloat64};

TEST_F(GpuRmsNormTest, BothPassesAreWithinTheBound) {
  for (const DType dtype : kDTypes) {
    for (const std::int64_t rows : {0, 1, 3, 17, 130}) {
      for (const std::int64_t width : {1, 3, 8, 17, 63, 64, 576}) {
        for (const bool adds : {false, true}) {
          Case of(dtype, rows, width, adds, width == 64 ? 1 : 0);
          run(of);
          expect_right(of);
        }
      }
    }
  }
}

TEST_F(GpuRmsNormTest, WideRowsAreWithinTheBound) {
  for (const DType dtype : kDTypes) {
    for (const std::int64_t width : {1000, 4096, 8192, 8193, 20000}) {
      Case of(dtype, 37, width, width % 3 == 0);
      run(of);
      expect_right(of);
    }
  }
}

TEST_F(GpuRmsNormTest, HasTheSameBitsInEveryRun) {
  for (const DType dtype : kDTypes) {
    Case first(dtype, 1500, 768, true);
    Case again = first;
    run(first);
    run(again);
    EXPECT_TRUE(first.has_same_results(again));
  }
}

TEST_F(GpuRmsNormTest, AWrongShapeIsRefused) {
  Case of(DType::kFloat16, 2, 4, true);
  RmsNormForward empty = of.forward();
  empty.width = 0;
  EXPECT_THROW(rms_norm_cuda(empty, nullptr, {}), ShapeError);
}

}  // namespace
}  // namespace paperlab::kernels
