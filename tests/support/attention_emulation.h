#pragma once
// The GPU's attention on the CPU: the same block functions, block by block, warp by warp and lane
// by lane, as kernels/attention/cuda.cu launches them. Blocks start with NaN in their memory.

#include "tests/support/attention_tensors.h"

namespace paperlab::test {

// The order of threads, warps and lanes: results must not depend on it.
enum class EmulatedOrder : std::uint8_t { kForward, kReversed };

// Into tensors.out and tensors.lse, which start as NaN.
void emulate_attention(AttentionTensors& tensors, EmulatedOrder order = EmulatedOrder::kForward);

// Into the gradients, which start as NaN; out and lse are given.
void emulate_attention_backward(AttentionTensors& tensors,
                                EmulatedOrder order = EmulatedOrder::kForward);

}  // namespace paperlab::test
