// The gated activation on a GPU. Compiled in builds with CUDA alone.

#include <gtest/gtest.h>

#include "kernels/swiglu/cuda.h"
#include "paperlab/core/error.h"
#include "tests/kernels/swiglu_cases.h"
#include "tests/support/device_memory.h"
#include "tests/support/gpu.h"

namespace paperlab::kernels {
namespace {

using swiglu_cases::Case;
using swiglu_cases::expect_right;
using swiglu_cases::Matrix;

class GpuSwigluTest : public test::GpuTest {};

void run(Case& of) {
  std::vector<std::span<std::byte>> host;
  for (Matrix* matrix : {&of.gate, &of.up, &of.grad_y, &of.y, &of.grad_gate, &of.grad_up}) {
    host.emplace_back(matrix->bytes);
  }
  test::DeviceMemory device(host);
  Swiglu problem = of.problem();
  device.move(problem.gate.data);
  device.move(problem.up.data);
  MutableRows y = of.y.view();
  device.move(y.data);
  swiglu_cuda(problem, y, {});
  const Matrix& grad = of.grad_y;
  Rows grad_y = grad.view();
  MutableRows grad_gate = of.grad_gate.view();
  MutableRows grad_up = of.grad_up.view();
  device.move(grad_y.data);
  device.move(grad_gate.data);
  device.move(grad_up.data);
  swiglu_backward_cuda(problem, grad_y, grad_gate, grad_up, {});
  device.download();
}

constexpr DType kDTypes[] = {DType::kFloat32, DType::kBFloat16, DType::kFloat16, DType::kFloat64};

TEST_F(GpuSwigluTest, BothPassesAreWithinTheBound) {
  for (const DType dtype : kDTypes) {
    for (const std::int64_t rows : {0, 1, 5}) {
      for (const std::int64_t width : {1, 3, 16, 65, 64, 5000}) {
        for (const std::int64_t gap : {0, 7, 64}) {
          for (const std::int64_t first : {0, 1}) {
            Case of(dtype, rows, width, width + gap, 2.0, first);
            run(of);
            expect_right(of);
          }
        }
      }
    }
  }
}

TEST_F(GpuSwigluTest, LargeGatesNeitherOverflowNorCancel) {
  for (const DType dtype : kDTypes) {
    Case of(dtype, 4, 100, 100, 60.0);
    run(of);
    expect_right(of);
  }
}

TEST_F(GpuSwigluTest, HasTheSameBitsInEveryRun) {
  for (const DType dtype : kDTypes) {
    Case first(dtype, 70, 11008, 22016);
    Case again = first;
    run(first);
    run(again);
    EXPECT_TRUE(first.has_same_results(again));
  }
}

TEST_F(GpuSwigluTest, ANegativeSizeIsRefused) {
  Case of(DType::kFloat16, 1, 2, 2);
  Swiglu problem = of.problem();
  problem.width = -1;
  EXPECT_THROW(swiglu_cuda(problem, of.y.view(), {}), ShapeError);
}

}  // namespace
}  // namespace paperlab::kernels
