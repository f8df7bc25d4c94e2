// Random cases of attention, both directions; one that fails is made as small as it goes.
#include <gtest/gtest.h>

#include <cstdint>

#include "tests/support/attention_cases.h"
#include "tests/support/attention_exact.h"

namespace paperlab::kernels {
namespace {

using test::AttentionCase;
using test::Direction;

void expect_right(std::uint64_t first_seed, std::uint64_t count, std::int64_t max_products) {
  const auto fails = [](const AttentionCase& of) {
    return !test::is_right_everywhere(of, Direction::kBoth);
  };
  for (std::uint64_t seed = first_seed; seed < first_seed + count; ++seed) {
    const AttentionCase of = test::random_attention_case(seed, max_products);
    if (fails(of)) {
      const AttentionCase smallest = test::smallest_failure(of, fails);
      FAIL() << test::is_right_everywhere(smallest, Direction::kBoth).message()
             << "\n  smallest case of " << test::literal_of(of);
    }
  }
}

// Parameter: a block of seeds.
class AttentionPropertyTest : public testing::TestWithParam<std::uint64_t> {};

TEST_P(AttentionPropertyTest, RandomCasesAreWithinTheBound) {
  expect_right(1000 + 40 * GetParam(), 40, 400'000);
}

INSTANTIATE_TEST_SUITE_P(Seeds, AttentionPropertyTest, testing::Range<std::uint64_t>(0, 10));

class SlowAttentionPropertyTest : public testing::TestWithParam<std::uint64_t> {};

TEST_P(SlowAttentionPropertyTest, RandomCasesAreWithinTheBound) {
  expect_right(100'000 + 300 * GetParam(), 300, 3'000'000);
}

INSTANTIATE_TEST_SUITE_P(Seeds, SlowAttentionPropertyTest, testing::Range<std::uint64_t>(0, 10));

TEST(AttentionCaseTest, ShrinkingFindsTheSmallestFailure) {
  const AttentionCase large = {.batch = 3,
                               .num_heads = 6,
                               .num_kv_heads = 3,
                               .num_queries = 90,
                               .num_keys = 100,
                               .head_dim = 80,
                               .dtype = DType::kBFloat16,
                               .rule = KeyRule::core_context(5, 20),
                               .num_prefix_heads = 3,
                               .num_extra_entries = 2,
                               .has_prefix_query = true,
                               .ranges = test::KeyRanges::kBoth,
                               .layout = test::AttentionLayout::kPadded,
                               .offset = 3,
                               .scale = 2.0,
                               .magnitude = 4.0};
  const AttentionCase smallest = test::smallest_failure(large, [](const AttentionCase& of) {
    return of.num_queries >= 5 && of.head_dim >= 3 && of.rule.group >= 2 && of.num_heads >= 2;
  });
  EXPECT_EQ(test::literal_of(smallest),
            "{.num_heads = 2, .num_queries = 5, .head_dim = 3, .dtype = DType::kBFloat16, "
            ".rule = KeyRule::core_context(2, 0), .num_prefix_heads = 1, .has_grad_lse = false, "
            ".seed = 7}");
}

TEST(AttentionCaseTest, SimplerCasesAreValid) {
  for (std::uint64_t seed = 0; seed < 50; ++seed) {
    for (const AttentionCase& of : test::simpler_cases(test::random_attention_case(seed, 2'000))) {
      EXPECT_NO_THROW(test::AttentionTensors(of).run_forward(serial_executor()))
          << test::literal_of(of);
    }
  }
}

TEST(AttentionCaseTest, RandomCasesCoverEveryOption) {
  int batched = 0, empty = 0, single = 0, prefixed = 0, ranged = 0, half = 0;
  for (std::uint64_t seed = 0; seed < 200; ++seed) {
    const AttentionCase of = test::random_attention_case(seed, 400'000);
    batched += of.batch > 1 ? 1 : 0;
    empty += of.num_keys == 0 || of.num_queries == 0 ? 1 : 0;
    single += of.num_queries == 1 ? 1 : 0;
    prefixed += test::num_prefix_entries(of) > 0 ? 1 : 0;
    ranged += of.ranges != test::KeyRanges::kAll ? 1 : 0;
    half += of.dtype == DType::kBFloat16 ? 1 : 0;
  }
  for (const int count : {batched, empty, single, prefixed, ranged, half}) {
    EXPECT_GE(count, 3);
  }
}

}  // namespace
}  // namespace paperlab::kernels
