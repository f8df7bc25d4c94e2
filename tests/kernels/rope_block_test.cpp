// The GPU's blocks of rope, run on the CPU.

#include "kernels/rope/block.h"

#include <gtest/gtest.h>

#include <limits>
#include <vector>

#include "tests/kernels/rope_cases.h"
#include "tests/support/cuda_emulation.h"

namespace paperlab::kernels {
namespace {

using rope_cases::Case;
using rope_cases::kCudaDTypes;

void emulate(const Rope& problem, void* out, bool is_reversed = false) {
  with_element(problem.x.dtype, [&](auto element) {
    using T = typename decltype(element)::Type;
    const RopePlan plan = rope_plan<T>(problem, out);
    test::emulate_teams<NoRegisters>(
        plan.num_blocks(), kRopeThreads, is_reversed,
        [&](auto& team, std::int64_t block) { rope_block<T>(team, problem, plan, block, out); });
  });
}

TEST(RopeBlockTest, RotationIsWithinTheBoundAndOtherLanesAreCopied) {
  rope_cases::expect_right_of_all(
      [](Case& of, bool inverse) { emulate(of.problem(inverse), of.out.data()); });
}

TEST(RopeBlockTest, ARowThatManyShareIsReadWhereItLies) {
  Case of(DType::kFloat32, {1, 3, 2, 24, 8}, 0, 1);
  emulate(of.problem(false), of.out.data());
  Rope expanded = of.problem(false);
  expanded.x.size[0] = 4;
  expanded.x.stride[0] = 0;
  std::vector<float> out(static_cast<std::size_t>(4 * of.numbers()));
  emulate(expanded, out.data());
  for (std::size_t i = 0; i < out.size(); ++i) {
    EXPECT_EQ(out[i], load_number(of.out.data(), DType::kFloat32,
                                  static_cast<std::int64_t>(i) % of.numbers()));
  }
}

TEST(RopeBlockTest, OrderOfThreadsAndBlocksDoesNotMatter) {
  for (const DType dtype : kCudaDTypes) {
    Case forward(dtype, {2, 20, 9, 96, 40}, 0, 2);
    Case reversed = forward;
    emulate(forward.problem(false), forward.out.data());
    emulate(reversed.problem(false), reversed.out.data(), /*is_reversed=*/true);
    EXPECT_EQ(forward.out, reversed.out);
  }
}

TEST(RopeBlockTest, NanStaysInItsPair) {
  Case of(DType::kFloat32, {1, 1, 2, 50, 21}, 0, 1);
  const double nan = std::numeric_limits<double>::quiet_NaN();
  store_number(of.x.data(), DType::kFloat32, 5, nan);
  emulate(of.problem(false), of.out.data());
  for (std::int64_t i = 0; i < 100; ++i) {
    EXPECT_EQ(std::isnan(load_number(of.out.data(), DType::kFloat32, i)), i == 5 || i == 26);
  }
}

// A thread's items, heads and position are within their ranges, and every one of them has a thread.
TEST(RopePlanTest, EveryItemHasAThread) {
  for (std::int64_t heads = 0; heads <= 70; heads = heads * 3 / 2 + 1) {
    for (std::int64_t pairs = 0; pairs <= 300; pairs = pairs * 3 / 2 + 1) {
      for (const std::int64_t copies : {0, 1, 5}) {
        const RopePlan plan = rope_plan(1000, heads, pairs, copies, true);
        ASSERT_GE(plan.lanes, 1);
        ASSERT_GE(plan.slots, 1);
        ASSERT_GE(plan.positions, 1);
        ASSERT_LE(plan.lanes * plan.slots * plan.positions, kRopeThreads);
        ASSERT_TRUE(plan.lanes == kRopeThreads || plan.lanes >= plan.items);
        ASSERT_GE(plan.num_blocks() * plan.positions, 1000);
      }
    }
  }
}

}  // namespace
}  // namespace paperlab::kernels
