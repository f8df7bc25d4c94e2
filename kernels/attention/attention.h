#pragma once
// Attention over two key streams in one softmax: O = softmax(scale Q K^T + mask) V and the row
// log-sum-exp, forward and backward. Dense, window, core-context and sink attention are rules
// (key_rule.h) of this one kernel.
// B batch, T queries, S keys, H query heads, G key/value heads (H % G == 0), D head size, J prefix
// entries, P prefix heads (H or G).
// Needs LibTorch: no. float32 and bfloat16 accumulate in float32; float64 runs the reference.
// The same bits for every executor and from run to run.

#include <cstdint>

#include "kernels/attention/key_rule.h"
#include "kernels/attention/tile.h"
#include "kernels/common/tensor_view.h"
#include "paperlab/core/parallel.h"

namespace paperlab::kernels {

struct AttentionInputs {
  ConstTensorView query;         // [B, H, T, D], any strides but the last
  ConstTensorView key;           // [B, G, S, D], dtype of query, as all that follow
  ConstTensorView value;         // [B, G, S, D]
  ConstTensorView prefix_query;  // [B, H, T, D]; absent: query
  ConstTensorView prefix_key;    // [B, P, J, D]; absent: no prefix
  ConstTensorView prefix_value;  // [B, P, J, D]
  // [B], positions (key n stands at n + rule.num_past), 0..S + num_past; absent: 0 and S +
  // num_past. Keys outside are never read.
  const std::int64_t* key_start = nullptr;
  const std::int64_t* key_end = nullptr;
  KeyRule rule;
  double scale = 1.0;  // multiplies the logits
};

// Every element is written: zeros and -infinity for rows that see no key, or only keys whose logits
// overflow to -infinity.
struct AttentionOutputs {
  TensorView out;       // [B, H, T, D], dtype of query
  void* lse = nullptr;  // [B, H, T] contiguous, natural logarithm; float32 (float64 for float64)
};

struct AttentionBackwardInputs {
  ConstTensorView grad_out;        // [B, H, T, D], dtype of query
  const void* grad_lse = nullptr;  // [B, H, T] contiguous, dtype of lse; absent: zeros
  ConstTensorView out;             // of the forward pass
  const void* lse = nullptr;
};

// Every element is written; a row without keys has gradient 0. dtype and sizes of the inputs. Those
// of the prefix must be absent where the input is.
struct AttentionGradients {
  TensorView query;
  TensorView key;
  TensorView value;
  TensorView prefix_query;
  TensorView prefix_key;
  TensorView prefix_value;
};

// Throws ShapeError, DTypeError or ValueError, before any work, if the inputs are not as above, D
// is outside 1..256, the prefix is shorter than the rule makes visible, or a range lies outside
// 0..S + num_past. A single query (T = 1) is split over its keys, by a split that depends on S, J
// and D alone.
void attention(const AttentionInputs& inputs, const AttentionOutputs& outputs,
               const Executor& executor);

// Gradients with respect to all of the inputs. At most four private copies of the query's gradient
// (float32) are added in the order of the keys.
void attention_backward(const AttentionInputs& inputs, const AttentionBackwardInputs& forward,
                        const AttentionGradients& gradients, const Executor& executor);

// The part of those checks that reads no memory: all but the numbers in key_start and key_end.
void check_attention(const AttentionInputs& inputs);

// The definition: row by row, in float64 whatever the dtype (reference.cpp).
void attention_reference(const AttentionInputs& inputs, const AttentionOutputs& outputs);
void attention_backward_reference(const AttentionInputs& inputs,
                                  const AttentionBackwardInputs& forward,
                                  const AttentionGradients& gradients);

}  // namespace paperlab::kernels
