#pragma once
/// \file
/// rms_norm, swiglu and rope from LibTorch's operations: for every device and dtype (float16 too),
/// without waiting for the device. Arguments were checked by the operator; sums are float32
/// (float64 for float64) and results are rounded once. New contiguous tensors.

#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>

namespace paperlab::ops::forms {

/// y, sum ([0] without a residual) and inverse_rms of rms_norm.h.
std::tuple<at::Tensor, at::Tensor, at::Tensor> rms_norm(const at::Tensor& x,
                                                        const at::Tensor& weight,
                                                        const std::optional<at::Tensor>& residual,
                                                        double eps);

/// The gradients of x and weight; s is the sum, or x without a residual.
std::tuple<at::Tensor, at::Tensor> rms_norm_backward(const at::Tensor& grad_y,
                                                     const std::optional<at::Tensor>& grad_sum,
                                                     const at::Tensor& s, const at::Tensor& weight,
                                                     const at::Tensor& inverse_rms);

at::Tensor swiglu(const at::Tensor& gate, const at::Tensor& up);

/// The gradients of gate and up.
std::tuple<at::Tensor, at::Tensor> swiglu_backward(const at::Tensor& grad_y, const at::Tensor& gate,
                                                   const at::Tensor& up);

/// cos and sin are of the dtype of sums.
at::Tensor rope(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin, bool inverse);

}  // namespace paperlab::ops::forms
