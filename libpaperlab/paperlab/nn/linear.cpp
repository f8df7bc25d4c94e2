#include "paperlab/nn/linear.h"

#include "paperlab/ops/linear.h"

namespace paperlab::nn {

at::Tensor DenseLinear::forward(const at::Tensor& x) const {
  return ops::linear(x, *weight_, bias_ == nullptr ? at::Tensor() : *bias_);
}

at::Tensor LinearSlot::operator()(const at::Tensor& x, const LinearHooks& hooks) const {
  for (const auto& [id, hook] : hooks) {
    hook(name, x);
  }
  return layer->forward(x);
}

}  // namespace paperlab::nn
