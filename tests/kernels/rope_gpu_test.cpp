// The rotation on a GPU. Compiled in builds with CUDA alone.

#include <gtest/gtest.h>

#include "kernels/rope/cuda.h"
#include "paperlab/core/error.h"
#include "tests/kernels/rope_cases.h"
#include "tests/support/device_memory.h"
#include "tests/support/gpu.h"

namespace paperlab::kernels {
namespace {

using rope_cases::Case;
using rope_cases::kCudaDTypes;

class GpuRopeTest : public test::GpuTest {};

void run(Case& of, bool inverse) {
  test::DeviceMemory device({of.x, of.out, of.cos, of.sin});
  Rope problem = of.problem(inverse);
  void* out = of.out.data();
  device.move(problem.x.data);
  device.move(problem.cos);
  device.move(problem.sin);
  device.move(out);
  rope_cuda(problem, out, {});
  device.download();
}

TEST_F(GpuRopeTest, RotationIsWithinTheBoundAndOtherLanesAreCopied) {
  rope_cases::expect_right_of_all(run);
}

TEST_F(GpuRopeTest, HasTheSameBitsInEveryRun) {
  for (const DType dtype : kCudaDTypes) {
    Case first(dtype, {2, 300, 32, 128, 64}, 0, 1);
    Case again = first;
    run(first, false);
    run(again, false);
    EXPECT_EQ(first.out, again.out);
  }
}

TEST_F(GpuRopeTest, WrongSizesAreRefused) {
  Case of(DType::kFloat16, {2, 2, 2, 6, 3}, 0, 1);
  Rope problem = of.problem(false);
  problem.half = 4;
  EXPECT_THROW(rope_cuda(problem, of.out.data(), {}), ShapeError);
}

}  // namespace
}  // namespace paperlab::kernels
