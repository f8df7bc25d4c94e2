#pragma once
/// \file
/// Rotary position embedding of heads as a differentiable operator.
/// Source: Su et al., RoFormer, arXiv:2104.09864, Eq. (34), in the layout that pairs lane i with
/// lane i + R/2.

#include <ATen/core/Tensor.h>

#include "paperlab/core/export.h"

namespace paperlab::ops {

/// Rotates the first R <= D lanes of each head, i < R/2, and copies the others:
///   out[i] = x[i] cos[i] - x[i + R/2] sin[i],  out[i + R/2] = x[i + R/2] cos[i] + x[i] sin[i].
///
/// \param x        [B, T, H, D], float32, float64 or bfloat16 (CUDA: float16 too), any strides (no
///                 copy where lanes lie side by side).
/// \param cos      [B or 1, T, R/2] with R <= D, float32 (float64 for a float64 x), x's device.
/// \param sin      of cos's shape, dtype and device.
/// \param inverse  rotates by the negated angle: with sin negated.
/// \return         a new contiguous tensor [B, T, H, D] of x's dtype, differentiable with respect
/// to
///                 x, cos and sin.
/// \throws c10::ValueError  (Python: ValueError) if a shape, layout or device is not as above.
/// \throws c10::TypeError   (Python: TypeError) if a dtype is not as above.
///
/// Registered as `paperlab::rope`. Computes in float32 (float64 for float64) and rounds once. The
/// same bits from run to run and for any number of threads.
PAPERLAB_API at::Tensor rope(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin,
                             bool inverse = false);

}  // namespace paperlab::ops
