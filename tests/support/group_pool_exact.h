#pragma once
// Pooling of groups as the textbook writes it, and what a kernel's error may be. Independent of the
// kernel and of its reference.

#include <gtest/gtest.h>

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "kernels/group_pool/group_pool.h"
#include "tests/support/attention_tensors.h"

namespace paperlab::test {

struct PoolCase {
  std::int64_t batch = 1;
  std::int64_t num_heads = 1;
  std::int64_t num_kv_heads = 1;
  std::int64_t num_tokens = 8;
  std::int64_t num_queries = 8;  // of the last tokens
  std::int64_t head_dim = 8;
  std::int64_t group = 2;
  std::int64_t first = 0;
  std::int64_t num_left_out = 0;  // groups at the end that are not asked for
  bool has_start = false;
  bool per_kv_head = false;
  kernels::PoolKind kind = kernels::PoolKind::kAttention;
  kernels::DType dtype = kernels::DType::kFloat32;
  AttentionLayout layout = AttentionLayout::kBHTD;
  std::int64_t offset = 0;
  double magnitude = 1.0;  // of queries and keys
  std::uint64_t seed = 7;
};

// Small to medium.
PoolCase random_pool_case(std::uint64_t seed);
std::string text_of(const PoolCase& of);

// All that a case needs. What no group has is NaN: tokens outside of groups, queries that evaluate
// none.
class PoolTensors {
 public:
  explicit PoolTensors(const PoolCase& of);

  kernels::GroupPoolInputs inputs() const;
  kernels::GroupPoolOutputs outputs();      // filled with NaN
  kernels::GroupPoolGradients gradients();  // likewise

  std::int64_t start(std::int64_t b) const;   // of group 0
  std::int64_t groups(std::int64_t b) const;  // of a row
  std::vector<const GuardedTensor*> results() const;
  std::vector<const GuardedTensor*> gradient_results() const;  // of key, value, query if any

  PoolCase of;
  std::vector<std::int64_t> starts;
  GuardedTensor query, key, value, grad_core_key, grad_core_value;
  GuardedTensor core_key, core_value, grad_query, grad_key, grad_value;
};

// Compares every result with
//   half an ulp (of 16 bits) + eps norm (2 D + g + 16 + 4 (D + 4) largest logit)
// where `norm` is the sum of the absolute values of the terms of which the element is a sum, eps
// that of float32 (float64), and a logit's size that of its terms: logits are sums of D products,
// whose errors move a weight by that share; sums over the group have g terms.
testing::AssertionResult is_pooled_right(PoolTensors& tensors, const Executor& executor);

// The same after run(tensors), which runs both passes.
testing::AssertionResult is_pooled_right(PoolTensors& tensors,
                                         const std::function<void(PoolTensors&)>& run);

}  // namespace paperlab::test
