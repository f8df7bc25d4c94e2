#pragma once
// Cases of Hopper's forward pass (block_hopper.h) beside those of the other blocks, for its block
// functions on the CPU and for a GPU.

#include <array>
#include <cstdint>
#include <vector>

#include "tests/kernels/attention_block_cases.h"

namespace paperlab::test {

// Several times around the ring: two tiles of 128 keys each. Rows that end inside a tile, streams
// that end inside a block, grouped heads, both streams with a query each; keys and values that no
// row sees are NaN where ranges leave them.
inline std::vector<BlockCase> ring_rounds() {
  using kernels::DType;
  using kernels::KeyRule;
  KeyRule kept = KeyRule::core_context(2, 150);
  kept.kept = 20;
  std::vector<BlockCase> cases;
  for (const KeyRule& rule : {KeyRule::full(), KeyRule::dense(), KeyRule::sliding(290),
                              KeyRule::core_context(2, 150), kept, KeyRule::sinks(140, 300)}) {
    const bool has_prefix = needs_prefix(rule);
    cases.push_back({{.num_heads = 3,
                      .num_queries = 50,
                      .num_keys = 777,
                      .head_dim = 64,
                      .dtype = DType::kFloat16,
                      .rule = rule,
                      .num_prefix_heads = has_prefix ? 1 : 0,
                      .has_prefix_query = true},
                     Direction::kForward});
    cases.push_back({{.batch = 2,
                      .num_queries = 133,
                      .num_keys = 640,
                      .head_dim = 104,
                      .dtype = DType::kBFloat16,
                      .rule = rule,
                      .num_prefix_heads = has_prefix ? 1 : 0,
                      .ranges = KeyRanges::kBoth,
                      .layout = AttentionLayout::kBTHD},
                     Direction::kForward});
  }
  cases.push_back({{.num_heads = 2,
                    .num_queries = 65,
                    .num_keys = 400,
                    .head_dim = 128,
                    .dtype = DType::kBFloat16,
                    .scale = -3.0},
                   Direction::kForward});
  return cases;
}

// The other families of masks; keys that are gone (num_past), whose windows begin inside a block.
inline std::vector<BlockCase> other_masks() {
  using kernels::KeyRule;
  KeyRule overlap = KeyRule::core_context(4, 90);
  overlap.overlap = 1;
  KeyRule truncated = KeyRule::core_context(40, 30);
  truncated.truncated = true;
  KeyRule past_window = KeyRule::sliding(200);
  past_window.num_past = 70;
  KeyRule past = KeyRule::core_context(3, 140);
  past.num_past = 100;
  past.kept = 5;
  std::vector<BlockCase> cases;
  for (const KeyRule& rule : {overlap, truncated, past_window, past}) {
    const bool is_wide = rule.num_past > 0;
    cases.push_back({{.num_heads = 4,
                      .num_kv_heads = 2,
                      .num_queries = 70,
                      .num_keys = 300,
                      .head_dim = is_wide ? 128 : 64,
                      .dtype = is_wide ? kernels::DType::kBFloat16 : kernels::DType::kFloat16,
                      .rule = rule,
                      .num_prefix_heads = needs_prefix(rule) ? 4 : 0,
                      .has_prefix_query = true},
                     Direction::kForward});
  }
  return cases;
}

// Heads that share keys and heads that don't; rows with gaps; one head's keys for all, whose
// strides are 0 (with one head of one batch row, no stride at all).
inline std::vector<BlockCase> box_layouts() {
  std::vector<BlockCase> cases;
  for (const AttentionLayout layout : {AttentionLayout::kSpaced, AttentionLayout::kShared}) {
    for (const std::int64_t kv_heads : {1, 2, 4}) {
      const bool is_wide = (layout == AttentionLayout::kSpaced) == (kv_heads == 2);
      cases.push_back({{.batch = kv_heads == 1 ? 1 : 2,
                        .num_heads = 4,
                        .num_kv_heads = kv_heads,
                        .num_queries = 67,
                        .num_keys = 200,
                        .head_dim = is_wide ? 128 : 64,
                        .dtype = is_wide ? kernels::DType::kFloat16 : kernels::DType::kBFloat16,
                        .rule = kernels::KeyRule::core_context(2, 100),
                        .num_prefix_heads = kv_heads,
                        .has_prefix_query = kv_heads == 4,
                        .layout = layout},
                       Direction::kForward});
    }
  }
  return cases;
}

constexpr std::array<BlockCases, 3> kHopperCases = {
    {{"RingRounds", ring_rounds}, {"OtherMasks", other_masks}, {"BoxLayouts", box_layouts}}};

}  // namespace paperlab::test
