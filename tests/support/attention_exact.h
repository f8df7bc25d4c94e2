#pragma once
// Attention as the textbook writes it: a dense mask, filled key by key from the words of
// key_rule.h, a full softmax and its derivatives; and what a kernel's error may be. Independent of
// the kernels and of their reference.

#include <gtest/gtest.h>

#include <cstdint>
#include <string>
#include <vector>

#include "tests/support/attention_tensors.h"

namespace paperlab::test {

// Whether a row at position p sees the key at position n, or prefix entry n, of the keys at
// start..end-1, all of which are there.
bool sees_key(const kernels::KeyRule& rule, std::int64_t p, std::int64_t n, std::int64_t start,
              std::int64_t end);
bool sees_entry(const kernels::KeyRule& rule, std::int64_t p, std::int64_t n, std::int64_t start,
                std::int64_t end);

// One tensor, row-major, empty where the case has none. Exact: in long double for float64, else in
// double. Allowed, element by element, with `norm` the sum of the absolute values of all products
// that the element is a sum of (1 for lse), and eps that of float32 (of float64 for float64):
//   2 max |plain - exact| + ulp(exact) / 2 + eps norm (4 + largest |logit|)
// where `plain` is the same formula in the working dtype, the maximum is over the tensor and the
// ulp is that of the tensor's dtype. The backward pass is given `out` rounded: a bfloat16 gradient
// may also be off by what half an ulp of `out` moves it, for the query's
//   |scale| sum_n p_n |k_n| sum_d |g_d| ulp(o_d) / 2
// 0 where norm is 0: nothing may come from nothing.
struct ExpectedTensor {
  std::string name;
  std::vector<long double> exact;
  std::vector<long double> allowed;
};

struct ExpectedAttention {
  std::vector<ExpectedTensor> forward;   // as AttentionTensors::forward_results()
  std::vector<ExpectedTensor> backward;  // as AttentionTensors::backward_results()
};

enum class Direction : std::uint8_t { kForward, kBoth };

ExpectedAttention expected_attention(const AttentionTensors& tensors, Direction direction);

// Fails with the worst element: tensor, index, what came, what is exact, what is allowed. A NaN is
// an infinite error. Where the exact value is infinite, so must the result be.
testing::AssertionResult is_within(const GuardedTensor& actual, const ExpectedTensor& expected);

// Runs the case on the instruction set in use and compares every result, the memory around them and
// the inputs afterwards.
testing::AssertionResult is_right(AttentionTensors& tensors, const ExpectedAttention& expected,
                                  Direction direction, const Executor& executor);

// On every instruction set that this CPU has; names the one that fails, and the case.
testing::AssertionResult is_right_everywhere(const AttentionCase& of, Direction direction);

}  // namespace paperlab::test
