#pragma once
/// \file
/// Root-mean-square normalization with the residual's addition before it, as a differentiable
/// operator.
/// Source: Zhang, Sennrich, NeurIPS 2019, arXiv:1910.07467, Eq. (4).

#include <ATen/core/Tensor.h>

#include "paperlab/core/export.h"

namespace paperlab::ops {

struct RmsNormResult {
  at::Tensor y;    ///< s / sqrt(mean(s^2) + eps) * weight, shape and dtype of x.
  at::Tensor sum;  ///< s = x + residual, likewise; without residual not defined.
};

/// Normalizes the rows of x, or of x + residual, which is returned too: a decoder's stream goes on
/// with it.
///
/// \param x         [..., W] with W >= 1, float32, float64 or bfloat16 (CUDA: float16 too), any
///                  strides.
/// \param weight    [W], dtype and device of x.
/// \param residual  of x's shape and dtype; not defined: nothing is added.
/// \param eps       finite, >= 0.
/// \return          new tensors, differentiable once with respect to x, weight and residual.
/// \throws c10::ValueError  (Python: ValueError) if a shape, device or eps is not as above.
/// \throws c10::TypeError   (Python: TypeError) if a dtype is not as above.
///
/// Registered as `paperlab::rms_norm`, its gradient as `paperlab::rms_norm_backward`. Accumulates
/// in float32 (float64 for float64). The same bits from run to run and for any number of threads.
PAPERLAB_API RmsNormResult rms_norm(const at::Tensor& x, const at::Tensor& weight,
                                    const at::Tensor& residual = {}, double eps = 1e-6);

}  // namespace paperlab::ops
