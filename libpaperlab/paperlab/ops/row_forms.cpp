#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>

#include "paperlab/ops/dispatch_rules_internal.h"
#include "paperlab/ops/kernel_dtype_internal.h"
#include "paperlab/ops/row_forms_internal.h"

namespace paperlab::ops::forms {
namespace {

at::Tensor widened(const at::Tensor& x) { return x.to(statistics_dtype(x.scalar_type())); }

// Results of operations have the strides of what they were made of.
at::Tensor rounded(const at::Tensor& x, const at::Tensor& like) {
  return x.to(like.scalar_type()).contiguous();
}

}  // namespace

// s = x + residual as it is stored, r = 1 / sqrt(mean(s^2) + eps), y = s r weight.
std::tuple<at::Tensor, at::Tensor, at::Tensor> rms_norm(const at::Tensor& x,
                                                        const at::Tensor& weight,
                                                        const std::optional<at::Tensor>& residual,
                                                        double eps) {
  const autocast::Off guard;
  const at::Tensor s = residual.has_value() ? (x + *residual).contiguous() : x;
  const at::Tensor wide = widened(s);
  const at::Tensor inverse = (wide.square().mean(-1, /*keepdim=*/true) + eps).rsqrt();
  return {rounded(wide * inverse * widened(weight), x),
          residual.has_value() ? s : at::empty({0}, x.options()), inverse.squeeze(-1).contiguous()};
}

// With n = s r and g = grad_y weight: grad_s = r (g - n mean(g n)) + grad_sum and grad_weight =
// the sum over rows of grad_y n.
std::tuple<at::Tensor, at::Tensor> rms_norm_backward(const at::Tensor& grad_y,
                                                     const std::optional<at::Tensor>& grad_sum,
                                                     const at::Tensor& s, const at::Tensor& weight,
                                                     const at::Tensor& inverse_rms) {
  const autocast::Off guard;
  const at::Tensor inverse = inverse_rms.unsqueeze(-1);
  const at::Tensor n = widened(s) * inverse;
  const at::Tensor of_y = widened(grad_y);
  const at::Tensor g = of_y * widened(weight);
  at::Tensor grad_s = inverse * (g - n * (g * n).mean(-1, /*keepdim=*/true));
  if (grad_sum.has_value()) {
    grad_s = grad_s + *grad_sum;
  }
  const at::Tensor grad_weight = (of_y * n).reshape({-1, s.size(-1)}).sum(0);
  return {rounded(grad_s, s), rounded(grad_weight, weight)};
}

at::Tensor swiglu(const at::Tensor& gate, const at::Tensor& up) {
  const autocast::Off guard;
  const at::Tensor wide = widened(gate);
  return rounded(wide * wide.sigmoid() * widened(up), gate);
}

// With s = 1 / (1 + exp(-gate)): grad_gate = grad_y up s (1 + gate (1 - s)), grad_up = grad_y gate
// s.
std::tuple<at::Tensor, at::Tensor> swiglu_backward(const at::Tensor& grad_y, const at::Tensor& gate,
                                                   const at::Tensor& up) {
  const autocast::Off guard;
  const at::Tensor wide = widened(gate);
  const at::Tensor s = wide.sigmoid();
  const at::Tensor of_s = widened(grad_y) * s;
  return {rounded(of_s * widened(up) * (1 + wide * wide.neg().sigmoid()), gate),
          rounded(of_s * wide, up)};
}

at::Tensor rope(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin, bool inverse) {
  const autocast::Off guard;
  const std::int64_t half = cos.size(2);
  const at::Tensor low = x.narrow(3, 0, half).to(cos.scalar_type());
  const at::Tensor high = x.narrow(3, half, half).to(cos.scalar_type());
  const at::Tensor c = cos.unsqueeze(2);
  const at::Tensor s = (inverse ? sin.neg() : sin).unsqueeze(2);
  return at::cat(
             {(low * c - high * s).to(x.scalar_type()), (high * c + low * s).to(x.scalar_type()),
              x.narrow(3, 2 * half, x.size(3) - 2 * half)},
             3)
      .contiguous();
}

}  // namespace paperlab::ops::forms
