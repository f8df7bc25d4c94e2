// The rule of keys as tensors and the chunks of rows, against the rule itself.

#include <ATen/ops/arange.h>
#include <ATen/ops/tensor.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "kernels/attention/key_rule.h"
#include "paperlab/ops/attention_torch_internal.h"

namespace paperlab::ops {
namespace {

using kernels::KeyRule;

std::vector<KeyRule> rules() {
  std::vector<KeyRule> found = {KeyRule::full(), KeyRule::dense()};
  for (const std::int64_t window : {1, 3, 100}) {
    found.push_back(KeyRule::sliding(window));
    found.push_back(KeyRule::sinks(0, window));
    found.push_back(KeyRule::sinks(4, window));
  }
  for (const std::int64_t group : {1, 3, 5}) {
    for (const std::int64_t window : {0, 2, 7}) {
      for (int options = 0; options < 12; ++options) {
        KeyRule rule = KeyRule::core_context(group, window);
        rule.kept = options / 4 * 2;
        rule.overlap = options % 2;
        rule.truncated = options / 2 % 2 == 1;
        found.push_back(rule);
      }
    }
  }
  return found;
}

struct Sizes {
  std::int64_t num_queries;
  std::int64_t num_keys;
  std::int64_t num_past;
};

constexpr Sizes kSizes[] = {{1, 9, 0}, {6, 6, 0}, {9, 4, 0}, {5, 12, 0}, {4, 6, 11}, {9, 3, 5}};

std::string name_of(const KeyRule& rule, const Sizes& of) {
  std::string text = "kind " + std::to_string(static_cast<int>(rule.kind));
  for (const std::int64_t number :
       {rule.window, rule.group, rule.num_sinks, rule.kept, rule.overlap,
        std::int64_t{rule.truncated}, of.num_queries, of.num_keys, of.num_past}) {
    text += " " + std::to_string(number);
  }
  return text;
}

std::int64_t at(const at::Tensor& x, std::int64_t b, std::int64_t t) {
  const std::int64_t row = x.size(0) == 1 ? 0 : b;
  const std::int64_t column = x.size(1) == 1 ? 0 : t;
  return x.const_data_ptr<std::int64_t>()[row * x.stride(0) + column * x.stride(1)];
}

// All ranges of keys at once, as batch rows.
void expect_the_rule(KeyRule rule, const Sizes& of) {
  rule.num_past = of.num_past;
  const std::int64_t length = of.num_past + of.num_keys;
  std::vector<std::int64_t> starts;
  std::vector<std::int64_t> ends;
  for (std::int64_t start = 0; start <= length; ++start) {
    for (std::int64_t end = 0; end <= length; ++end) {
      starts.push_back(start);
      ends.push_back(end);
    }
  }
  const std::int64_t first = of.num_past + kernels::key_position(0, of.num_queries, of.num_keys);
  const VisibleRows rows =
      visible_rows(rule, at::arange(first, first + of.num_queries, at::kLong).unsqueeze(0),
                   at::tensor(starts).unsqueeze(1), at::tensor(ends).unsqueeze(1));
  for (std::size_t b = 0; b < starts.size(); ++b) {
    for (std::int64_t t = 0; t < of.num_queries; ++t) {
      const auto row = static_cast<std::int64_t>(b);
      const kernels::VisibleKeys wanted = rule.visible(first + t, starts[b], ends[b]);
      const std::int64_t begin = at(rows.begin, row, t);
      const std::int64_t end = at(rows.end, row, t);
      ASSERT_EQ(at(rows.prefix_end, row, t), wanted.prefix_end)
          << name_of(rule, of) << " row " << t;
      ASSERT_EQ(end - begin, wanted.end - wanted.begin) << name_of(rule, of) << " row " << t;
      ASSERT_TRUE(begin == end || begin == wanted.begin) << name_of(rule, of) << " row " << t;
    }
  }
}

TEST(AttentionRowsTest, TensorsFollowTheRule) {
  for (const KeyRule& rule : rules()) {
    for (const Sizes& of : kSizes) {
      expect_the_rule(rule, of);
    }
  }
}

// Whatever the ranges of keys are, of which a plan knows no values.
void expect_chunks_hold(const ChunkPlan& plan) {
  const std::int64_t length = plan.rule.num_past + plan.num_keys;
  const std::int64_t least_end = plan.has_key_end ? 0 : length;
  for (std::int64_t row = 0; row < plan.num_queries;) {
    const RowChunk chunk = plan.chunk_at(row);
    ASSERT_EQ(chunk.first_row, row);
    ASSERT_GE(chunk.num_rows, 1);
    ASSERT_LE(chunk.num_rows, plan.num_queries - row);
    ASSERT_LE(chunk.first_key + chunk.num_keys, plan.num_keys);
    for (std::int64_t t = row; t < row + chunk.num_rows; ++t) {
      const std::int64_t p =
          plan.rule.num_past + kernels::key_position(t, plan.num_queries, plan.num_keys);
      for (std::int64_t start = 0; start <= length; ++start) {
        for (std::int64_t end = least_end; end <= length; ++end) {
          const kernels::VisibleKeys keys = plan.rule.visible(p, start, end);
          ASSERT_TRUE(keys.begin == keys.end || (keys.begin >= chunk.first_key &&
                                                 keys.end <= chunk.first_key + chunk.num_keys))
              << name_of(plan.rule, {plan.num_queries, plan.num_keys, 0}) << " row " << t;
          ASSERT_LE(std::min(keys.prefix_end, plan.num_entries), chunk.num_entries)
              << name_of(plan.rule, {plan.num_queries, plan.num_keys, 0}) << " row " << t;
        }
      }
    }
    row += chunk.num_rows;
  }
}

TEST(AttentionRowsTest, ChunksHoldWhatTheirRowsSee) {
  for (KeyRule rule : rules()) {
    for (const Sizes& of : kSizes) {
      rule.num_past = rule.kind == kernels::KeyRuleKind::kFull ? 0 : of.num_past;
      for (const bool has_key_end : {false, true}) {
        // From one chunk for all rows to one for each.
        for (const std::int64_t num_heads :
             {std::int64_t{1}, std::int64_t{1} << 20, std::int64_t{1} << 23}) {
          expect_chunks_hold({rule, num_heads, of.num_queries, of.num_keys, 30, has_key_end});
        }
      }
    }
  }
}

TEST(AttentionRowsTest, AWindowBoundsTheKeysOfAChunk) {
  const ChunkPlan plan = {KeyRule::sliding(100), 8, 100'000, 100'000, 0, false};
  std::int64_t num_chunks = 0;
  for (std::int64_t row = 0; row < plan.num_queries;) {
    const RowChunk chunk = plan.chunk_at(row);
    EXPECT_LE(8 * chunk.num_rows * chunk.num_keys, std::int64_t{1} << 24);
    EXPECT_LE(chunk.num_keys, chunk.num_rows + 100);
    row += chunk.num_rows;
    ++num_chunks;
  }
  EXPECT_LT(num_chunks, 150);
}

}  // namespace
}  // namespace paperlab::ops
