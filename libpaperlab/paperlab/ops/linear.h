#pragma once
/// \file
/// The linear map of rows, y = x weight^T + bias, as a differentiable operator.

#include <ATen/core/Tensor.h>

#include "paperlab/core/export.h"

namespace paperlab::ops {

/// Multiplies rows by a matrix: y[..., n] = sum over k of x[..., k] weight[n, k], plus bias[n].
///
/// \param x       [..., K], at least one dimension, float32, float64 or bfloat16 (CUDA: float16
///                too), any strides.
/// \param weight  [N, K], dtype and device of x, any strides: a transposed view costs no copy.
/// \param bias    [N], likewise; not defined: nothing is added.
/// \return        [..., N], new and contiguous, dtype of x; differentiable as often as wanted with
///                respect to x, weight and bias.
/// \throws c10::ValueError  (Python: ValueError) if a shape, device or layout is not as above.
/// \throws c10::TypeError   (Python: TypeError) if a dtype is not as above.
///
/// Registered as `paperlab::linear`; its gradients are such products of transposed views. On the
/// CPU float32 and bfloat16 accumulate in float32, float64 in float64, and float32 and float64 have
/// the same bits from run to run and for any number of threads; bfloat16 with many rows is
/// LibTorch's.
PAPERLAB_API at::Tensor linear(const at::Tensor& x, const at::Tensor& weight,
                               const at::Tensor& bias = {});

}  // namespace paperlab::ops
