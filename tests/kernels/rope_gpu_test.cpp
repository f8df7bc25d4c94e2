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
using rope_cases::expect_right;
using rope_cases::Sizes;

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

constexpr DType kDTypes[] = {DType::kFloat32, DType::kBFloat16, DType::kFloat16, DType::kFloat64};

TEST_F(GpuRopeTest, RotationIsWithinTheBoundAndOtherLanesAreCopied) {
  std::vector<Sizes> all = rope_cases::odd_sizes();
  all.push_back({1, 3, 17, 64, 16});     // a part of a head, in packs
  all.push_back({1, 1, 17, 1300, 600});  // more packs than threads, heads in several rounds
  for (const DType dtype : kDTypes) {
    for (const Sizes& size : all) {
      for (const std::int64_t table_batch : {std::int64_t{1}, size.batch}) {
        for (const bool inverse : {false, true}) {
          Case of(dtype, size, inverse ? 0 : 3, table_batch);
          run(of, inverse);
          expect_right(of, inverse);
        }
      }
    }
  }
}

TEST_F(GpuRopeTest, HasTheSameBitsInEveryRun) {
  for (const DType dtype : kDTypes) {
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
