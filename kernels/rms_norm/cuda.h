#pragma once
// The normalization on the GPU: the definition of rms_norm.h on pointers of the device, float16
// besides. float32 accumulation (float64: float64), the same bits from run to run and for a row
// whatever rows stand beside it. Asynchronous on the context's stream; nothing is allocated.
// No CUDA header, so that every build can name it.

#include "kernels/common/cuda/context.h"
#include "kernels/rms_norm/rms_norm.h"

namespace paperlab::kernels {

// Bytes of `workspace`, a multiple of 16 bytes in the device's memory; 0: it may be null.
std::int64_t rms_norm_cuda_workspace(const RmsNormForward& problem);
std::int64_t rms_norm_backward_cuda_workspace(const RmsNormBackward& problem);

// Throw as rms_norm and rms_norm_backward do, CudaError if a launch fails.
void rms_norm_cuda(const RmsNormForward& problem, void* workspace, const Context& context);
void rms_norm_backward_cuda(const RmsNormBackward& problem, void* workspace,
                            const Context& context);

}  // namespace paperlab::kernels
