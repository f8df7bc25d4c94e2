#pragma once
// Cases that go several times around the ring of Hopper's forward pass (block_hopper.h): two tiles
// of 128 keys each. Rows that end inside a tile, streams that end inside a block, grouped heads,
// both streams with a query each; keys and values that no row sees are NaN where ranges leave them.

#include <cstdint>
#include <vector>

#include "tests/kernels/attention_block_cases.h"

namespace paperlab::test {

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

}  // namespace paperlab::test
