#pragma once
/// \file
/// The gated activation silu(gate) * up in one pass, as a differentiable operator.
/// Source: Shazeer, arXiv:2002.05202, Eq. (6).

#include <ATen/core/Tensor.h>

#include "paperlab/core/export.h"

namespace paperlab::ops {

/// silu(gate) * up, silu(x) = x / (1 + exp(-x)).
///
/// \param gate  any shape of at least one dimension, float32, float64 or bfloat16 (CUDA:
///              float16 too). Rows that are apart (halves of one product) are read where they lie.
/// \param up    shape, dtype and device of gate.
/// \return      a new contiguous tensor of that shape and dtype, differentiable once with respect
///              to both.
/// \throws c10::ValueError  (Python: ValueError) if a shape or device is not as above.
/// \throws c10::TypeError   (Python: TypeError) if a dtype is not as above.
///
/// Registered as `paperlab::swiglu`, its gradient as `paperlab::swiglu_backward`. Computes in
/// float32 (float64 for float64). The same bits from run to run and for any number of threads.
PAPERLAB_API at::Tensor swiglu(const at::Tensor& gate, const at::Tensor& up);

}  // namespace paperlab::ops
