#pragma once
/// \file
/// even_pairs_loss from LibTorch's operations: for every device, without waiting for it. Arguments
/// were checked by the operator; computes in float64.

#include <ATen/core/Tensor.h>

#include <tuple>

namespace paperlab::ops::forms {

/// [], of the dtype of u.
at::Tensor even_pairs_loss(const at::Tensor& u, const at::Tensor& w, double attention_scale);

/// The gradients of u and w times `grad` [].
std::tuple<at::Tensor, at::Tensor> even_pairs_loss_backward(const at::Tensor& grad,
                                                            const at::Tensor& u,
                                                            const at::Tensor& w,
                                                            double attention_scale);

}  // namespace paperlab::ops::forms
