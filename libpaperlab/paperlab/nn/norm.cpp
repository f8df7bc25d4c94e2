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

at::Tensor RmsNorm::forward(const at::Tensor& x) const {
  return ops::rms_norm(x, widened(*weight_), {}, eps_).y;
}

NormLayer::Sum RmsNorm::add(const at::Tensor& x, const at::Tensor& delta) const {
  const ops::RmsNormResult result = ops::rms_norm(delta, widened(*weight_), x, eps_);
  return {result.y, result.sum};
}

// 1 + weight in bfloat16 would lose most of a small weight.
at::Tensor OffsetRmsNorm::forward(const at::Tensor& x) const {
  at::Tensor weight = widened(*weight_);
  if (weight.scalar_type() == at::kBFloat16) {
    weight = weight.to(at::kFloat);
  }
  const at::Tensor wide = x.to(weight.scalar_type());
  return ops::rms_norm(wide, at::add(weight, 1.0), {}, eps_).y.to(x.scalar_type());
}

NormLayer::Sum OffsetRmsNorm::add(const at::Tensor& x, const at::Tensor& delta) const {
  const at::Tensor weight = widened(*weight_);
  if (x.scalar_type() != weight.scalar_type() || x.scalar_type() == at::kBFloat16 ||
      delta.scalar_type() != x.scalar_type()) {
    return NormLayer::add(x, delta);
  }
  const ops::RmsNormResult result = ops::rms_norm(delta, at::add(weight, 1.0), x, eps_);
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
