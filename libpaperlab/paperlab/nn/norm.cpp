#include "paperlab/nn/norm.h"

#include <ATen/ops/add.h>
#include <ATen/ops/layer_norm.h>

#include "paperlab/nn/widened.h"
#include "paperlab/ops/rms_norm.h"

namespace paperlab::nn {

NormLayer::Sum NormLayer::add(const at::Tensor& x, const at::Tensor& delta) const {
  const at::Tensor sum = at::add(x, delta);
  return {forward(sum), sum};
}

// 1 + weight in bfloat16 would lose most of a small weight.
at::Tensor RmsNorm::multiplier() const {
  at::Tensor weight = widened(*weight_);
  if (!has_offset_) {
    return weight;
  }
  return at::add(weight.scalar_type() == at::kBFloat16 ? weight.to(at::kFloat) : weight, 1.0);
}

at::Tensor RmsNorm::forward(const at::Tensor& x) const {
  const at::Tensor weight = multiplier();
  const at::Tensor wide = has_offset_ ? x.to(weight.scalar_type()) : x;
  return ops::rms_norm(wide, weight, {}, eps_).y.to(x.scalar_type());
}

NormLayer::Sum RmsNorm::add(const at::Tensor& x, const at::Tensor& delta) const {
  const at::Tensor weight = multiplier();
  const bool is_one_type =
      x.scalar_type() == weight.scalar_type() && delta.scalar_type() == x.scalar_type();
  if (has_offset_ && !is_one_type) {
    return NormLayer::add(x, delta);
  }
  const ops::RmsNormResult result = ops::rms_norm(delta, weight, x, eps_);
  return {result.y, result.sum};
}

NormLayer::Sum NoNorm::add(const at::Tensor& x, const at::Tensor& delta) const {
  const at::Tensor sum = at::add(x, delta);
  return {sum, sum};
}

NormLayer::Sum NormAfter::add(const at::Tensor& x, const at::Tensor& delta) const {
  const at::Tensor y = inner_->forward(at::add(x, delta));
  return {y, y};
}

at::Tensor LayerNorm::forward(const at::Tensor& x) const {
  const at::Tensor weight = weight_ == nullptr ? at::Tensor() : widened(*weight_);
  const at::Tensor bias = bias_ == nullptr ? at::Tensor() : widened(*bias_);
  return at::layer_norm(x, {x.size(-1)}, weight, bias, eps_);
}

}  // namespace paperlab::nn
