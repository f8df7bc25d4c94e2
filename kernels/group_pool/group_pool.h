#pragma once
// Pools each group of g neighbouring tokens to one core token, head by head: with a softmax over
// the group whose query is that of the group's last token (its evaluator), with the mean or with
// the maximum of each channel. For group c, tokens t = f + c g .. f + c g + g - 1, e the last:
//   w_t = exp(scale q_e . k_t) / sum_u exp(scale q_e . k_u),  k^G_c = sum w_t k_t,
//   v^G_c = sum w_t v_t
// forward and backward.
// Source: CCA (Chen et al., ICML 2025, arXiv:2412.12465), globality-aware pooling.
// B batch, T tokens, H query heads, G key/value heads (H % G == 0), P pooled heads, m groups, D
// head size.
// Needs LibTorch: no. float32 and bfloat16 accumulate in float32; float64 runs the reference.
// The same bits for every executor and from run to run.

#include <cstdint>

#include "kernels/common/tensor_view.h"
#include "paperlab/core/parallel.h"

namespace paperlab::kernels {

enum class PoolKind : std::uint8_t { kAttention, kMean, kMax };

struct GroupPoolInputs {
  // [B, H, Q, D], the queries of the last Q <= T tokens, among them the last of every group that is
  // pooled; any strides but the last. kMean and kMax: absent.
  ConstTensorView query;
  ConstTensorView key;    // [B, G, T, D], dtype of query
  ConstTensorView value;  // [B, G, T, D]
  // [B], 0..T: the token with which group 0 of a row begins, besides `first`; absent: 0.
  const std::int64_t* start = nullptr;
  std::int64_t first = 0;  // >= 0
  std::int64_t group = 1;  // g >= 1
  PoolKind kind = PoolKind::kAttention;
  double scale = 1.0;  // multiplies the logits
};

// [B, P, m, D], dtype of key, any strides but the last: may lie in a cache. P = H: weights of each
// query head. P = G (kMean, kMax: always): the evaluator is the mean of the H/G queries of a key
// head. Every element is written: zeros where a row has fewer than m complete groups.
struct GroupPoolOutputs {
  TensorView key;
  TensorView value;
};

// Shapes and dtypes of the inputs and outputs.
struct GroupPoolGradients {
  ConstTensorView grad_key;    // [B, P, m, D]
  ConstTensorView grad_value;  // [B, P, m, D]
  TensorView query;            // every element of these is written; kMean and kMax: absent
  TensorView key;
  TensorView value;
};

// m for T tokens when groups begin at token `first`: (T - first) / g, 0 where first > T.
constexpr std::int64_t num_groups(std::int64_t num_tokens, std::int64_t first, std::int64_t group) {
  return num_tokens > first ? (num_tokens - first) / group : 0;
}

// The first m = outputs' size groups of each row. Throw ShapeError, DTypeError or ValueError,
// before any work, if the inputs are not as above, D is outside 1..256 or m is more than
// num_groups(T, first, g). For kMax the first of equal maxima has the gradient; a NaN is larger
// than any number.
void group_pool(const GroupPoolInputs& inputs, const GroupPoolOutputs& outputs,
                const Executor& executor);
void group_pool_backward(const GroupPoolInputs& inputs, const GroupPoolGradients& gradients,
                         const Executor& executor);

// The part of those checks that reads no memory: all but the numbers in `start`.
void check_group_pool(const GroupPoolInputs& inputs, const GroupPoolOutputs& outputs);
void check_group_pool_backward(const GroupPoolInputs& inputs, const GroupPoolGradients& gradients);

// The definition, in float64 whatever the dtype (reference.cpp).
void group_pool_reference(const GroupPoolInputs& inputs, const GroupPoolOutputs& outputs);
void group_pool_backward_reference(const GroupPoolInputs& inputs,
                                   const GroupPoolGradients& gradients);

}  // namespace paperlab::kernels
