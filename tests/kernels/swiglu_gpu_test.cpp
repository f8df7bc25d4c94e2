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
using swiglu_cases::kCudaDTypes;
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

TEST_F(GpuSwigluTest, BothPassesAreWithinTheBound) { swiglu_cases::expect_right_of_all(run); }

TEST_F(GpuSwigluTest, LargeGatesNeitherOverflowNorCancel) {
  swiglu_cases::expect_right_of_large_gates(run);
}

TEST_F(GpuSwigluTest, HasTheSameBitsInEveryRun) {
  for (const DType dtype : kCudaDTypes) {
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
