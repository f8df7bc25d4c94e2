#pragma once
// The rotation on the GPU: the definition of rope.h on pointers of the device, float16 besides.
// float32 arithmetic (float64: float64), the same bits from run to run and for a position whatever
// stands beside it. Asynchronous on the context's stream; needs no workspace and allocates nothing.
// No CUDA header, so that every build can name it.

#include "kernels/common/cuda/context.h"
#include "kernels/rope/rope.h"

namespace paperlab::kernels {

// Throws as rope does, CudaError if a launch fails.
void rope_cuda(const Rope& problem, void* out, const Context& context);

}  // namespace paperlab::kernels
