#pragma once
/// \file
/// Sums over the outputs of a decoder's blocks with weights of each token, as a differentiable
/// operator.
/// Source: Xiao, Meng, Li, Yuan, "MUDDFormer", ICML 2025, arXiv:2502.12170, Eqs. (3) to (8).

#include <ATen/core/Tensor.h>

#include "paperlab/core/export.h"

namespace paperlab::ops {

/// out[c, b, t] = sum over j of weights[c, b, t, j] states[j, b, t].
///
/// \param states   [J, B, T, D] with J, D >= 1, float32, float64 or bfloat16 (CUDA: float16 too),
///                 any strides. States that are contiguous one by one are read where they lie.
/// \param weights  [C, B, T, J] with C >= 1, dtype and device of states, any strides.
/// \return         a new contiguous tensor [C, B, T, D] of that dtype, differentiable once with
///                 respect to both.
/// \throws c10::ValueError  (Python: ValueError) if a shape or device is not as above.
/// \throws c10::TypeError   (Python: TypeError) if a dtype is not as above.
///
/// Registered as `paperlab::depth_aggregate`, its gradient as `paperlab::depth_aggregate_backward`.
/// On the CPU float32 and bfloat16 accumulate in float32, float64 in float64, and the bits are the
/// same from run to run and for any number of threads. On CUDA devices LibTorch's operations
/// compute it, in the same types (backend.h).
PAPERLAB_API at::Tensor depth_aggregate(const at::Tensor& states, const at::Tensor& weights);

/// The same of states that are tensors of their own: J >= 1 of [B, T, D]. Contiguous ones are read
/// where they lie, and the backward pass keeps the tensors given, not a copy; each gets a gradient.
///
/// Registered as `paperlab::depth_aggregate_list`, its gradient as
/// `paperlab::depth_aggregate_list_backward`. LibTorch's operations copy the states for the time of
/// the call.
PAPERLAB_API at::Tensor depth_aggregate(at::TensorList states, const at::Tensor& weights);

}  // namespace paperlab::ops
