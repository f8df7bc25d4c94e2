#pragma once
// Attention on the GPU: the problem of attention.h with all pointers of the current device,
// key_start and key_end too (values outside 0..S + num_past count as the nearest inside). float32
// and float64 run plain blocks, bfloat16 and float16 tensor cores with sums in float32 (sm_80 and
// up). Asynchronous; nothing is allocated. The same bits from run to run; a row's bits do not
// depend on the other units or batch rows. No CUDA header, so that every build can name it.

#include <cstdint>

#include "kernels/attention/attention.h"
#include "kernels/common/cuda/context.h"

namespace paperlab::kernels {

// Bytes of device memory, a multiple of 16, perhaps 0, that the call of the same name needs. Throw
// as attention() does; the values of key_start and key_end are not looked at.
std::int64_t attention_cuda_workspace(const AttentionInputs& inputs);
std::int64_t attention_backward_cuda_workspace(const AttentionInputs& inputs);

// Bytes of shared memory that the largest block of the call of the same name takes: a GPU whose
// blocks may have fewer (device_facts: 101376 on sm_86 and sm_89) cannot run it. On sm_90 the
// forward pass may take other blocks, up to what such a GPU has.
std::int64_t attention_cuda_shared_memory(DType dtype, std::int64_t head_dim);
std::int64_t attention_backward_cuda_shared_memory(DType dtype, std::int64_t head_dim);

// As attention() and attention_backward(). Few queries (at most 64 rows of a unit) are split over
// their keys, by a split that depends on S, J and D alone. workspace: aligned to 16 bytes; free
// again when the stream gets there. Throws CudaError if a launch fails,
// UnsupportedError if the GPU has too little shared memory.
void attention_cuda(const AttentionInputs& inputs, const AttentionOutputs& outputs, void* workspace,
                    const Context& context);
void attention_backward_cuda(const AttentionInputs& inputs, const AttentionBackwardInputs& forward,
                             const AttentionGradients& gradients, void* workspace,
                             const Context& context);

}  // namespace paperlab::kernels
