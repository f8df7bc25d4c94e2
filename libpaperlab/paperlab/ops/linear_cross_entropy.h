#pragma once
/// \file
/// Cross-entropy of a linear map's rows without the matrix of logits, as a differentiable operator.
/// Source: online log-sum-exp (Milakov, Gimelshein, arXiv:1805.02867); chunks of the vocabulary
/// (Wijmans et al., arXiv:2411.09009).

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string_view>

#include "paperlab/core/export.h"

namespace paperlab::ops {

struct LinearCrossEntropyOptions {
  at::Tensor bias{};                    ///< [V], dtype of x; not defined: zeros.
  std::int64_t ignore_index = -100;     ///< The target of rows that do not count.
  std::string_view reduction = "mean";  ///< "mean" of the rows that count, "sum" or "none".
  double z_loss = 0.0;  ///< Finite, >= 0: adds z_loss lse^2 for each row that counts.
};

struct LinearCrossEntropyResult {
  at::Tensor loss;  ///< [], or of target's shape without reduction (0 for rows that do not count).
  at::Tensor lse;   ///< [N], the logits' log-sum-exp of each row.
};

/// Returns lse - logits[target] of logits = x weight^T + bias, lse = ln sum e^logits, reduced.
///
/// \param x       [..., D], float32, float64 or bfloat16 (CUDA: float16 too), any strides; N rows.
/// \param weight  [V, D] with V >= 1, dtype and device of x, any strides; may be an embedding.
/// \param target  [...] int64, 0..V-1 or ignore_index.
/// \return        new tensors, float32 (float64 for float64). The loss is differentiable once with
///                respect to x, weight and bias; lse is not. A mean of no rows is NaN, its
///                gradients are 0.
/// \throws c10::ValueError  (Python: ValueError) if a shape, device, value or option is not as
///                          above. Targets on a CUDA device are not looked at: the loss of one that
///                          is refused on the CPU is NaN there, and the gradients of its row.
/// \throws c10::TypeError   (Python: TypeError) if a dtype is not as above.
///
/// Registered as `paperlab::linear_cross_entropy`, its gradient as
/// `paperlab::linear_cross_entropy_backward`; under autocast in autocast's dtype, as linear. On the
/// CPU logits exist for chunks that fit into a cache, float32 and bfloat16 accumulate in float32,
/// float64 in float64, and the bits are the same from run to run and for any number of threads.
PAPERLAB_API LinearCrossEntropyResult
linear_cross_entropy(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& target,
                     const LinearCrossEntropyOptions& options = {});

}  // namespace paperlab::ops
