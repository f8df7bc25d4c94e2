#pragma once
// Cases of the GPU's attention: for its block functions on the CPU and for a GPU.

#include <gtest/gtest.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "tests/support/attention_exact.h"

namespace paperlab::test {

struct BlockCase {
  AttentionCase of;
  Direction direction = Direction::kBoth;
};

// Allowed is twice what attention_exact.h allows the CPU's kernels: weights are powers of two, so
// that the scale, the logit in units of log 2, and the log-sum-exp in these units are rounded once
// more each, by half an eps of the largest logit. Sums of products differ in their order alone.
inline testing::AssertionResult are_within(const std::vector<const GuardedTensor*>& results,
                                           const std::vector<ExpectedTensor>& expected) {
  for (std::size_t i = 0; i < results.size(); ++i) {
    ExpectedTensor wide = expected[i];
    for (long double& allowed : wide.allowed) {
      allowed *= 2.0L;
    }
    const testing::AssertionResult result = is_within(*results[i], wide);
    if (!result) {
      return result;
    }
    if (!results[i]->has_untouched_gaps()) {
      return testing::AssertionFailure() << wide.name << ": memory around it was written";
    }
  }
  return testing::AssertionSuccess();
}

// run(tensors, direction) computes the results, which start as NaN.
template <class Run>
testing::AssertionResult is_right(const BlockCase& block_case, Run run) {
  AttentionTensors tensors(block_case.of);
  const ExpectedAttention expected = expected_attention(tensors, block_case.direction);
  const std::vector<std::byte> inputs = tensors.input_bytes();
  run(tensors, block_case.direction);
  testing::AssertionResult result = are_within(tensors.forward_results(), expected.forward);
  if (result && block_case.direction == Direction::kBoth) {
    result = are_within(tensors.backward_results(), expected.backward);
  }
  if (!result) {
    return result << "\n  " << literal_of(block_case.of);
  }
  if (inputs != tensors.input_bytes()) {
    return testing::AssertionFailure() << "an input was changed: " << literal_of(block_case.of);
  }
  return result;
}

// Of the forward pass and, after it, of the backward pass.
inline testing::AssertionResult have_same_bits(const AttentionTensors& a, const AttentionTensors& b,
                                               Direction direction = Direction::kBoth) {
  const auto are_same = [](const auto& of_a, const auto& of_b) {
    bool are = true;
    for (std::size_t i = 0; i < of_a.size(); ++i) {
      are = are && of_a[i]->all_bytes() == of_b[i]->all_bytes();
    }
    return are;
  };
  const bool are =
      are_same(a.forward_results(), b.forward_results()) &&
      (direction == Direction::kForward || are_same(a.backward_results(), b.backward_results()));
  return are ? testing::AssertionSuccess() : testing::AssertionFailure() << literal_of(a.of);
}

// ---------------------------------------------------------------------------------------------

inline void add_in_each_dtype(std::vector<BlockCase>& cases, AttentionCase of,
                              Direction direction = Direction::kBoth) {
  using kernels::DType;
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat16, DType::kFloat64}) {
    of.dtype = dtype;
    cases.push_back({of, direction});
  }
}

inline std::vector<BlockCase> odd_lengths() {
  std::vector<BlockCase> cases;
  for (const std::int64_t queries : {0, 1, 3, 63, 65, 130}) {
    for (const std::int64_t keys : {0, 1, 7, 64, 65, 131}) {
      cases.push_back({{.batch = 2,
                        .num_queries = queries,
                        .num_keys = keys,
                        .head_dim = 20,
                        .dtype = kernels::DType::kBFloat16}});
    }
  }
  for (const kernels::KeyRule rule : {kernels::KeyRule::dense(), kernels::KeyRule::full()}) {
    add_in_each_dtype(
        cases, {.num_heads = 2, .num_queries = 77, .num_keys = 71, .head_dim = 40, .rule = rule});
  }
  return cases;
}

inline std::vector<BlockCase> widths() {
  std::vector<BlockCase> cases;
  for (const std::int64_t head_dim : {1, 8, 63, 64, 72, 127, 128, 129, 256}) {
    add_in_each_dtype(cases, {.num_queries = 20, .num_keys = 70, .head_dim = head_dim});
  }
  cases.push_back(
      {{.num_queries = 140, .num_keys = 70, .head_dim = 128, .dtype = kernels::DType::kBFloat16}});
  cases.push_back(
      {{.num_queries = 70, .num_keys = 140, .head_dim = 200, .dtype = kernels::DType::kFloat16}});
  return cases;
}

inline std::vector<BlockCase> grouped_heads() {
  std::vector<BlockCase> cases;
  for (const std::int64_t shared : {2, 3}) {
    for (const std::int64_t queries : {5, 50}) {
      add_in_each_dtype(cases, {.batch = 2,
                                .num_heads = 2 * shared,
                                .num_kv_heads = 2,
                                .num_queries = queries,
                                .num_keys = 66,
                                .head_dim = 16});
    }
  }
  return cases;
}

inline std::vector<BlockCase> windows() {
  std::vector<BlockCase> cases;
  for (const std::int64_t window : {1, 5, 64, 100}) {
    add_in_each_dtype(cases, {.num_queries = 130,
                              .num_keys = 160,
                              .head_dim = 16,
                              .rule = kernels::KeyRule::sliding(window)});
  }
  return cases;
}

inline std::vector<BlockCase> core_context() {
  std::vector<BlockCase> cases;
  for (const std::int64_t group : {1, 3, 16}) {
    for (const std::int64_t prefix_heads : {2, 4}) {
      add_in_each_dtype(cases, {.num_heads = 4,
                                .num_kv_heads = 2,
                                .num_queries = 40,
                                .num_keys = 80,
                                .head_dim = 16,
                                .rule = kernels::KeyRule::core_context(group, 10),
                                .num_prefix_heads = prefix_heads,
                                .num_extra_entries = 2,
                                .has_prefix_query = group == 3});
    }
  }
  cases.push_back({{.num_queries = 200,
                    .num_keys = 230,
                    .dtype = kernels::DType::kBFloat16,
                    .rule = kernels::KeyRule::core_context(2, 70),
                    .num_prefix_heads = 1}});
  return cases;
}

inline std::vector<BlockCase> rule_variants() {
  using kernels::KeyRule;
  KeyRule kept = KeyRule::core_context(4, 9);
  kept.kept = 5;
  KeyRule overlap = KeyRule::core_context(4, 9);
  overlap.overlap = 1;
  KeyRule truncated = KeyRule::core_context(4, 3);
  truncated.truncated = true;
  KeyRule past = KeyRule::core_context(4, 30);
  past.num_past = 20;
  std::vector<BlockCase> cases;
  for (const KeyRule& rule : {kept, overlap, truncated, past, KeyRule::sinks(4, 20)}) {
    for (const kernels::DType dtype : {kernels::DType::kFloat32, kernels::DType::kBFloat16}) {
      cases.push_back({{.num_heads = 2,
                        .num_queries = 70,
                        .num_keys = 75,
                        .dtype = dtype,
                        .rule = rule,
                        .num_prefix_heads = 1,
                        .has_prefix_query = true}});
    }
  }
  return cases;
}

inline std::vector<BlockCase> key_ranges() {
  using kernels::KeyRule;
  std::vector<BlockCase> cases;
  for (const KeyRanges ranges : {KeyRanges::kLeft, KeyRanges::kRight, KeyRanges::kBoth}) {
    for (const KeyRule rule : {KeyRule::full(), KeyRule::dense(), KeyRule::sliding(30),
                               KeyRule::core_context(4, 10), KeyRule::sinks(3, 20)}) {
      for (const kernels::DType dtype : {kernels::DType::kFloat32, kernels::DType::kBFloat16}) {
        cases.push_back({{.batch = 4,
                          .num_queries = 70,
                          .num_keys = 80,
                          .dtype = dtype,
                          .rule = rule,
                          .num_prefix_heads = needs_prefix(rule) ? 1 : 0,
                          .ranges = ranges}});
      }
    }
  }
  return cases;
}

inline std::vector<BlockCase> layouts() {
  std::vector<BlockCase> cases;
  for (const AttentionLayout layout : {AttentionLayout::kBHTD, AttentionLayout::kBTHD,
                                       AttentionLayout::kPadded, AttentionLayout::kShared}) {
    for (const std::int64_t offset : {0, 1}) {
      add_in_each_dtype(cases, {.batch = 2,
                                .num_heads = 2,
                                .num_queries = 30,
                                .num_keys = 70,
                                .head_dim = 24,
                                .rule = kernels::KeyRule::core_context(2, 8),
                                .num_prefix_heads = 2,
                                .has_prefix_query = true,
                                .has_grad_lse = offset == 0,
                                .layout = layout,
                                .offset = offset});
    }
  }
  return cases;
}

// At most 64 rows of a unit are split over runs of keys: 256 keys each for a head size of 128.
inline std::vector<BlockCase> split_rows() {
  using kernels::DType;
  using kernels::KeyRule;
  std::vector<BlockCase> cases;
  for (const std::int64_t queries : {1, 9}) {
    add_in_each_dtype(cases,
                      {.num_heads = 6,
                       .num_kv_heads = 2,
                       .num_queries = queries,
                       .num_keys = 400,
                       .head_dim = 100},
                      Direction::kForward);
  }
  for (const KeyRule rule : {KeyRule::full(), KeyRule::sliding(300), KeyRule::core_context(2, 40),
                             KeyRule::sinks(4, 100)}) {
    for (const DType dtype : {DType::kFloat32, DType::kBFloat16}) {
      cases.push_back({{.batch = 3,
                        .num_heads = 2,
                        .num_queries = 2,
                        .num_keys = 600,
                        .head_dim = 128,
                        .dtype = dtype,
                        .rule = rule,
                        .num_prefix_heads = needs_prefix(rule) ? 1 : 0,
                        .has_prefix_query = true,
                        .ranges = KeyRanges::kBoth},
                       Direction::kForward});
    }
  }
  cases.push_back({{.num_heads = 20, .num_keys = 300, .head_dim = 256, .dtype = DType::kBFloat16},
                   Direction::kForward});
  cases.push_back(
      {{.num_keys = 1100, .head_dim = 64, .dtype = DType::kFloat16}, Direction::kForward});
  return cases;
}

inline std::vector<BlockCase> scales() {
  using kernels::KeyRule;
  std::vector<BlockCase> cases;
  for (const double scale : {0.0, 1e-30, -1.0, 3.0}) {
    add_in_each_dtype(cases, {.num_queries = 70, .num_keys = 70, .head_dim = 24, .scale = scale});
    add_in_each_dtype(cases, {.num_keys = 600, .head_dim = 100, .scale = scale},
                      Direction::kForward);
  }
  for (const KeyRule rule : {KeyRule::full(), KeyRule::core_context(4, 20)}) {
    add_in_each_dtype(cases, {.num_queries = 90,
                              .num_keys = 100,
                              .head_dim = 64,
                              .rule = rule,
                              .num_prefix_heads = needs_prefix(rule) ? 1 : 0,
                              .magnitude = 50.0});
  }
  return cases;
}

// A group of cases by name.
struct BlockCases {
  const char* name;
  std::vector<BlockCase> (*make)();
};

constexpr std::array<BlockCases, 10> kBlockCases = {{{"OddLengths", odd_lengths},
                                                     {"Widths", widths},
                                                     {"GroupedHeads", grouped_heads},
                                                     {"Windows", windows},
                                                     {"CoreContext", core_context},
                                                     {"RuleVariants", rule_variants},
                                                     {"KeyRanges", key_ranges},
                                                     {"Layouts", layouts},
                                                     {"SplitRows", split_rows},
                                                     {"Scales", scales}}};

inline std::string block_cases_name(const testing::TestParamInfo<BlockCases>& info) {
  return info.param.name;
}

}  // namespace paperlab::test
