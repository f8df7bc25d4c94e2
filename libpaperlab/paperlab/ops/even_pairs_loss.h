#pragma once
/// \file
/// Logistic loss of even pairs on all binary strings, as a differentiable operator.
/// Source: Huang, Liang, Yang, ICML 2025 (loss).

#include <ATen/core/Tensor.h>

#include "paperlab/core/export.h"

namespace paperlab::ops {

/// sum over L = 1..Lmax of the mean over all 2^L strings of log(1 + exp(-y T)), with y = +1 iff the
/// first token equals the last and T the score of the one-layer transformer (u, w).
///
/// \param u  [2 Lmax], float32 or float64; entry 2(l-1)+s for token s at position l.
///           Lmax is 1..24.
/// \param w  [2 Lmax keys, 2 Lmax queries], dtype and device of u, any strides.
/// \param attention_scale  divides the logits; finite, > 0.
/// \return   [], dtype of u; differentiable once with respect to u and w.
/// \throws c10::ValueError  (Python: ValueError) if a shape, a device or attention_scale is not as
///                          above, or u or w hold a NaN or infinity: of those on a CUDA device,
///                          which is not waited for, the loss and all gradients are NaN instead.
/// \throws c10::TypeError   (Python: TypeError) if a dtype is not as above.
///
/// Registered as `paperlab::even_pairs_loss`, its gradient as `paperlab::even_pairs_loss_backward`;
/// under autocast in float32, or float64. Accumulates in float64. Runs the fold kernel: O(2^Lmax)
/// time, at most 1 MiB of its own memory (on a GPU 2 MiB of LibTorch's allocator). The same bits
/// from run to run and for any number of threads.
PAPERLAB_API at::Tensor even_pairs_loss(const at::Tensor& u, const at::Tensor& w,
                                        double attention_scale);

}  // namespace paperlab::ops
