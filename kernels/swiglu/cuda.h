#pragma once
// The gated activation on the GPU: the definition of swiglu.h on pointers of the device, float16
// besides. float32 arithmetic (float64: float64), the same bits from run to run. Asynchronous on
// the context's stream; needs no workspace and allocates nothing. No CUDA header, so that every
// build can name it.

#include "kernels/common/cuda/context.h"
#include "kernels/swiglu/swiglu.h"

namespace paperlab::kernels {

// Throw as swiglu and swiglu_backward do, CudaError if a launch fails.
void swiglu_cuda(const Swiglu& problem, const MutableRows& y, const Context& context);
void swiglu_backward_cuda(const Swiglu& problem, const Rows& grad_y, const MutableRows& grad_gate,
                          const MutableRows& grad_up, const Context& context);

}  // namespace paperlab::kernels
