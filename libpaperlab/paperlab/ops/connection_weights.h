#pragma once
/// \file
/// Connection weights that each token generates from its own state, as a differentiable operator.
/// Source: Xiao, Meng, Li, Yuan, "MUDDFormer", ICML 2025, arXiv:2502.12170, Eq. (6).

#include <ATen/core/Tensor.h>

#include <string_view>

#include "paperlab/core/export.h"

namespace paperlab::ops {

struct ConnectionWeightsOptions {
  double eps = 1e-6;                ///< Finite, > 0; added to the mean of squares.
  std::string_view gelu = "exact";  ///< "exact" (erf) or "tanh".
};

/// gelu(n w1) w2 + a with n = x / sqrt(mean(x^2) + eps): for each token the weight of each of J
/// sources in each of C ways. Nothing mixes tokens.
///
/// \param x   [B, T, D] with D >= 1, float32, float64 or bfloat16 (CUDA: float16 too), any strides.
/// \param w1  [D, K] with K >= 1, dtype and device of x, any strides.
/// \param w2  [K, C J], likewise; column c J + j belongs to way c, source j.
/// \param a   [C, J] with C, J >= 1, likewise.
/// \return    a new contiguous tensor [C, B, T, J] of that dtype, differentiable once with respect
///            to all tensors.
/// \throws c10::ValueError  (Python: ValueError) if a shape, device or option is not as above.
/// \throws c10::TypeError   (Python: TypeError) if a dtype is not as above.
///
/// Registered as `paperlab::connection_weights`, its gradient as
/// `paperlab::connection_weights_backward`. On the CPU float32 and bfloat16 accumulate in float32,
/// float64 in float64, and the bits are the same from run to run and for any number of threads.
/// On CUDA devices LibTorch's operations compute it, in the same types (backend.h).
PAPERLAB_API at::Tensor connection_weights(const at::Tensor& x, const at::Tensor& w1,
                                           const at::Tensor& w2, const at::Tensor& a,
                                           const ConnectionWeightsOptions& options = {});

}  // namespace paperlab::ops
