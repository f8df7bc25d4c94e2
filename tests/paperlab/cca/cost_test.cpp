#include "paperlab/cca/cost.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <string>

#include "kernels/attention/key_rule.h"
#include "paperlab/cca/partition.h"
#include "paperlab/core/error.h"

namespace paperlab::cca {
namespace {

Options options_of(std::int64_t group, std::int64_t window, std::int64_t keep_first = 0) {
  Options options;
  options.group_size = group;
  options.window = window;
  options.keep_first = keep_first;
  return options;
}

// The partition, the counts and the rule of the attention kernel are one thing.
TEST(CcaCostTest, CountsAreThoseOfTheKernelsRule) {
  for (const std::int64_t group : {1, 2, 3, 8, 50}) {
    for (const std::int64_t window : {0, 1, 5, 8, 30}) {
      for (const std::int64_t keep_first : {0, 1, 7, 70}) {
        const Options options = options_of(group, window, keep_first);
        kernels::KeyRule rule = kernels::KeyRule::core_context(group, window);
        rule.kept = keep_first;
        std::int64_t core = 0;
        std::int64_t local = 0;
        for (std::int64_t p = 0; p < 64; ++p) {
          const kernels::VisibleKeys keys = rule.visible(p, 0, 64);
          const std::int64_t j = num_visible(p + 1, options);
          EXPECT_EQ(keys.prefix_end, j == 0 ? 0 : keep_first + j);
          EXPECT_EQ(keys.begin, num_behind(p + 1, options));
          core += j;
          local += p + 1 - group * j;
          const Cost counted = cost(p + 1, options);
          EXPECT_EQ(counted.core_pairs, core);
          EXPECT_EQ(counted.local_pairs, local);
          EXPECT_EQ(counted.cache_vectors, num_groups(p + 1, options) + p + 1 - group * j);
        }
      }
    }
  }
}

TEST(CcaCostTest, TheCacheIsThePublishedCurve) {
  const AttentionShape llama{32, 32, 128, 32, 2};
  for (const std::int64_t length : {4096, 32768, 131072}) {
    const Cost counted = cost(length, {}, llama);
    EXPECT_EQ(counted.cache_bytes, (std::int64_t{1} << 19) * (length / 16 + 1024));
    EXPECT_EQ(counted.full_cache_bytes, (std::int64_t{1} << 19) * length);
  }
  EXPECT_EQ(cost(131072).pairs, 663127488);
}

std::string message_of(std::int64_t length, const Options& options, const AttentionShape& shape) {
  try {
    cost(length, options, shape);
  } catch (const ValueError& error) {
    return error.what();
  }
  return "";
}

TEST(CcaCostTest, WrongNumbersAreRefusedByName) {
  EXPECT_EQ(message_of(-1, {}, {}).find("cost: length must be in 0.."), 0U);
  EXPECT_EQ(message_of(1, options_of(0, 1), {}).find("cost: group_size must be in 1.."), 0U);
  EXPECT_EQ(message_of(1, {}, {4, 3, 1, 1, 1}).find("cost: kv_heads must divide heads (4)"), 0U);
  EXPECT_EQ(message_of(1, {}, {4, 2, 0, 1, 1}).find("cost: head_dim must be in 1.."), 0U);
  EXPECT_EQ(message_of(std::int64_t{1} << 40, {}, {}).find("cost: length, heads"), 0U);
}

TEST(CcaOptionsTest, WhatIsWrongIsNamed) {
  EXPECT_EQ(problem_of({}), "");
  EXPECT_EQ(problem_of(options_of(16, -1)).find("window must be in 0.."), 0U);
  EXPECT_EQ(problem_of(options_of(16, 4, -2)).find("keep_first must be in 0.."), 0U);
  Options options = options_of(16, 24);
  options.boundary = Boundary::kTritonTruncation;
  EXPECT_EQ(problem_of(options).find("window must be a multiple of group_size (16)"), 0U);
  options.window = 0;
  EXPECT_EQ(problem_of(options), "");
  // NOLINTNEXTLINE(clang-analyzer-optin.core.EnumCastOutOfRange): that is what is refused
  options.pooling = static_cast<Pooling>(7);
  EXPECT_EQ(problem_of(options).find("pooling must be a value"), 0U);
  EXPECT_THROW(validate("f", options), ValueError);
}

}  // namespace
}  // namespace paperlab::cca
