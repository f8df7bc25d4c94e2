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

// As attention() and attention_backward(). Few queries (at most 64 rows of a unit) are split over
// their keys, by a split that depends on S, J and D alone. workspace: aligned to 16 bytes; free
// again when the stream gets there. Throws CudaError if a launch fails.
void attention_cuda(const AttentionInputs& inputs, const AttentionOutputs& outputs, void* workspace,
                    const Context& context);
void attention_backward_cuda(const AttentionInputs& inputs, const AttentionBackwardInputs& forward,
                             const AttentionGradients& gradients, void* workspace,
                             const Context& context);

}  // namespace paperlab::kernels
