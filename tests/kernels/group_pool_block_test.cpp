// The GPU's warps of group_pool, run on the CPU.

#include "kernels/group_pool/block.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/group_pool/block_rest.h"
#include "tests/kernels/group_pool_cases.h"
#include "tests/support/cuda_emulation.h"

namespace paperlab::kernels {
namespace {

using group_pool_cases::kDTypes;
using group_pool_cases::kKinds;
using test::GuardedTensor;
using test::PoolTensors;

template <class T>
void emulate_groups(const GroupPoolInputs& in, const PoolPlan& plan, const GroupPoolGradients& of,
                    std::vector<NumberOf<T>>& scratch, bool is_reversed) {
  const std::int64_t warps = num_pool_warps(plan.layout);
  if (plan.kind == PoolKind::kMax) {
    test::emulate_teams<PoolMaxRegisters<T>>(
        warps, kWarp, is_reversed,
        [&](auto& team, std::int64_t number) { pool_max_warp<T>(team, in, plan, of, number); });
    return;
  }
  if (plan.kind == PoolKind::kAttention) {
    test::emulate_teams<PoolGradRegisters<T>>(
        warps, kWarp, is_reversed, [&](auto& team, std::int64_t number) {
          pool_weights_warp<T>(team, in, plan, of, number, scratch.data());
        });
  }
  test::emulate_teams<PoolSpreadRegisters<T>>(
      num_spread_warps(plan), kWarp, is_reversed, [&](auto& team, std::int64_t number) {
        pool_spread_warp<T>(team, in, plan, of, number, scratch.data());
      });
}

template <class T>
void emulate_as(PoolTensors& tensors, bool is_reversed) {
  using Number = NumberOf<T>;
  using Bits = std::conditional_t<sizeof(T) == 2, BFloat16, T>;
  const GroupPoolInputs in = tensors.inputs();
  const GroupPoolOutputs out = tensors.outputs();
  const PoolPlan forward = pool_plan<T>(in, out);
  test::emulate_teams<PoolRegisters<T>>(
      num_pool_warps(forward.layout), kWarp, is_reversed,
      [&](auto& team, std::int64_t number) { pool_warp<T>(team, in, forward, out, number); });
  const GroupPoolGradients of = tensors.gradients();
  const PoolPlan plan = pool_plan<T>(in, of);
  const std::int64_t size = weights_at(plan.layout, num_pool_warps(plan.layout));
  std::vector<Number> scratch(static_cast<std::size_t>(size),
                              std::numeric_limits<Number>::quiet_NaN());
  emulate_groups<T>(in, plan, of, scratch, is_reversed);
  test::emulate_teams<NoRegisters>(
      num_clear_warps<Bits>(plan), kWarp, is_reversed,
      [&](auto& team, std::int64_t number) { pool_clear_warp<Bits>(team, plan, of, number); });
}

void emulate(PoolTensors& tensors, bool is_reversed = false) {
  with_element(tensors.of.dtype, [&](auto element) {
    emulate_as<typename decltype(element)::Type>(tensors, is_reversed);
  });
}

void emulate_once(PoolTensors& tensors) { emulate(tensors); }

TEST(GroupPoolBlockTest, RandomCasesAreWithinTheBound) {
  group_pool_cases::expect_right(group_pool_cases::random_cases(120), emulate_once);
}

TEST(GroupPoolBlockTest, EveryWidthIsWithinTheBound) {
  group_pool_cases::expect_right(group_pool_cases::width_cases(), emulate_once);
}

TEST(GroupPoolBlockTest, LongGroupsAreWithinTheBound) {
  group_pool_cases::expect_right(group_pool_cases::group_cases(128), emulate_once);
}

TEST(GroupPoolBlockTest, OrderOfThreadsAndWarpsDoesNotMatter) {
  for (const PoolKind kind : kKinds) {
    for (const DType dtype : kDTypes) {
      PoolTensors tensors({.batch = 2,
                           .num_heads = 4,
                           .num_kv_heads = 2,
                           .num_tokens = 50,
                           .num_queries = 50,
                           .head_dim = 40,
                           .group = 16,
                           .first = 3,
                           .has_start = true,
                           .kind = kind,
                           .dtype = dtype});
      emulate(tensors);
      const std::vector<std::byte> wanted = group_pool_cases::bytes_of_results(tensors);
      emulate(tensors, /*is_reversed=*/true);
      EXPECT_EQ(group_pool_cases::bytes_of_results(tensors), wanted);
    }
  }
}

// Of equal maxima, and of several NaNs, the first has the gradient; tokens of all slots and chunks.
TEST(GroupPoolBlockTest, TheFirstMaximumHasTheGradient) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  for (const DType dtype : kDTypes) {
    PoolTensors tensors({.num_tokens = 4,
                         .num_queries = 4,
                         .head_dim = 3,
                         .group = 4,
                         .kind = PoolKind::kMax,
                         .dtype = dtype});
    tensors.key.set_values({1, -1, 2, 3, -2, nan, 3, -1, 9, 0, -3, nan});
    emulate(tensors);
    const std::vector<double> core = tensors.core_key.values();
    EXPECT_EQ(core[0], 3.0);
    EXPECT_EQ(core[1], -1.0);
    EXPECT_TRUE(std::isnan(core[2]));
    const std::vector<double> g = tensors.grad_core_key.values();
    EXPECT_EQ(tensors.grad_key.values(),
              (std::vector<double>{0, g[1], 0, g[0], 0, g[2], 0, 0, 0, 0, 0, 0}));
  }
}

TEST(GroupPoolBlockTest, GroupsOfOneTokenAreTheTokens) {
  for (const PoolKind kind : kKinds) {
    PoolTensors tensors(
        {.num_tokens = 9, .num_queries = 9, .head_dim = 19, .group = 1, .kind = kind});
    emulate(tensors);
    EXPECT_EQ(tensors.core_key.values(), tensors.key.values());
    EXPECT_EQ(tensors.core_value.values(), tensors.value.values());
  }
}

// The kernel cannot refuse what it reads from the device: the row is NaN, the others are right.
TEST(GroupPoolBlockTest, ARowWithABadStartIsNan) {
  const auto is_row_0 = [](const GuardedTensor& tensor, auto matches) {
    const std::int64_t of_row = tensor.num_elements() / tensor.size(0);
    const std::vector<double> values = tensor.values();
    return std::all_of(values.begin(), values.begin() + of_row, matches) &&
           std::none_of(values.begin() + of_row, values.end(),
                        [](double x) { return std::isnan(x); });
  };
  for (const std::int64_t start : {-1, 12}) {
    PoolTensors tensors({.batch = 2,
                         .num_heads = 2,
                         .num_kv_heads = 2,
                         .num_tokens = 11,
                         .num_queries = 11,
                         .head_dim = 5,
                         .group = 3,
                         .has_start = true});
    tensors.starts[0] = start;
    emulate(tensors);
    for (const auto& results : {tensors.results(), tensors.gradient_results()}) {
      for (const GuardedTensor* tensor : results) {
        EXPECT_TRUE(is_row_0(*tensor, [](double x) { return std::isnan(x); }));
      }
    }
  }
}

// Lanes of a row and its packs.
TEST(PoolPlanTest, EveryPackOfARowHasOneLane) {
  for (const int of_lane : {1, 2, 4}) {
    for (std::int64_t packs = 1; packs <= std::int64_t{of_lane} * kWarp; ++packs) {
      const int lanes = 1 << pool_shift(packs, of_lane);
      ASSERT_LE(lanes, kWarp);
      ASSERT_GE(lanes * of_lane, packs);
      ASSERT_TRUE(lanes == 1 || std::int64_t{lanes / 2} * of_lane < packs);
    }
  }
}

TEST(PoolPlanTest, EveryTokenOfAGroupHasOneSlot) {
  for (int shift = 0; shift <= 5; ++shift) {
    for (std::int64_t group = 1; group <= 100; group = group * 3 / 2 + 1) {
      PoolPlan plan;
      plan.layout.group = group;
      plan.shift = shift;
      std::vector<int> count(static_cast<std::size_t>(group), 0);
      for (std::int64_t chunk = 0; chunk < plan.num_chunks(4); ++chunk) {
        for (int slot = 0; slot < plan.slots(); ++slot) {
          for (int step = 0; step < 4; ++step) {
            const std::int64_t n = plan.token(slot << shift, chunk, 4, step);
            if (n < group) {
              ++count[static_cast<std::size_t>(n)];
            }
          }
        }
      }
      ASSERT_EQ(count, std::vector<int>(static_cast<std::size_t>(group), 1));
    }
  }
}

}  // namespace
}  // namespace paperlab::kernels
