#pragma once
// The launches of attention's blocks, each group in a file of its own (cuda_*.cu); and how the host
// makes what they are given.

#include "kernels/attention/block_backward_task.h"
#include "kernels/attention/block_task.h"
#include "kernels/common/cuda/context.h"

namespace paperlab::kernels {

// Head sizes are padded to the widths of the kernels.
constexpr int padded_width(std::int64_t head_dim) {
  return head_dim <= 64 ? 64 : head_dim <= 128 ? 128 : 256;
}

// Whether a unit's rows are split over their keys.
inline bool is_split(const AttentionInputs& in) {
  return attention_launch(in, false).rows.num_rows <= kMaxDecodeRows && key_runs(in).count > 1;
}

// The launches of a call; `partials` or `delta` is its workspace.
ForwardLaunch forward_launch(const AttentionInputs& in, const AttentionOutputs& out,
                             void* partials);
BackwardLaunch backward_launch(const AttentionInputs& in, const AttentionBackwardInputs& forward,
                               const AttentionGradients& gradients, void* delta);

// float32 and float64.
void launch_plain_forward(const ForwardLaunch& launch, const Context& context);
void launch_plain_backward(const BackwardLaunch& launch, const Context& context);

// bfloat16 and float16.
template <class E>
void launch_forward(const ForwardLaunch& launch, const Context& context);
template <class E>
void launch_backward(const BackwardLaunch& launch, const Context& context);

}  // namespace paperlab::kernels
