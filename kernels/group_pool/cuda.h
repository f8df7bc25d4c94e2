#pragma once
// Pooling on the GPU: the definition of group_pool.h on pointers of the device (`start` too),
// float16 besides. float32 accumulation (float64: float64), the same bits from run to run and for a
// group whatever groups stand beside it. Asynchronous on the context's stream; nothing is
// allocated. The numbers in `start` are not checked before the launch: where group_pool would
// refuse a row for them, all that is written for that row is NaN. No CUDA header, so that every
// build can name it.

#include "kernels/common/cuda/context.h"
#include "kernels/group_pool/group_pool.h"

namespace paperlab::kernels {

// Bytes of `workspace`, a multiple of 16 bytes in the device's memory; 0: it may be null. Of
// problems that the checks below accept.
std::int64_t group_pool_cuda_workspace(const GroupPoolInputs& inputs,
                                       const GroupPoolOutputs& outputs);
std::int64_t group_pool_backward_cuda_workspace(const GroupPoolInputs& inputs,
                                                const GroupPoolGradients& gradients);

// Throw as check_group_pool and check_group_pool_backward do, CudaError if a launch fails.
void group_pool_cuda(const GroupPoolInputs& inputs, const GroupPoolOutputs& outputs,
                     void* workspace, const Context& context);
void group_pool_backward_cuda(const GroupPoolInputs& inputs, const GroupPoolGradients& gradients,
                              void* workspace, const Context& context);

}  // namespace paperlab::kernels
