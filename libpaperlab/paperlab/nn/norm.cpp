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

at::Tensor LayerNorm::forward(const at::Tensor& x) const {
  return at::layer_norm(x, {x.size(-1)}, widened(*weight_), widened(*bias_), eps_);
}

}  // namespace paperlab::nn
