#include "paperlab/mudd/modules.h"

#include <ATen/ops/randn.h>
#include <ATen/ops/zeros.h>
#include <c10/util/Exception.h>

#include <cmath>

#include "paperlab/core/error.h"

namespace paperlab::mudd {

ConnectionWeightGenerator::ConnectionWeightGenerator(std::int64_t d_model, std::int64_t num_sources,
                                                     std::int64_t ways,
                                                     const ConnectionWeightsOptions& options,
                                                     const at::TensorOptions& tensor_options)
    : eps_(options.eps), gelu_(options.gelu) {
  require<ValueError>(d_model >= 1 && num_sources >= 1 && ways >= 1,
                      "mudd::ConnectionWeightGenerator", "d_model, num_sources and ways >= 1",
                      std::to_string(d_model) + ", " + std::to_string(num_sources) + " and " +
                          std::to_string(ways));
  const std::int64_t count = ways * num_sources;
  const double std = 1.0 / std::sqrt(static_cast<double>(d_model));
  w1_ = at::randn({count, d_model}, tensor_options).mul_(std).requires_grad_(true);
  w2_ = at::zeros({count, count}, tensor_options).requires_grad_(true);
  a_ = at::zeros({ways, num_sources}, tensor_options);
  a_.select(1, num_sources - 1).fill_(1.0);
  a_.requires_grad_(true);
}

at::Tensor ConnectionWeightGenerator::forward(const at::Tensor& x) const {
  return connection_weights(x, w1_.t(), w2_.t(), a_, {eps_, gelu_});
}

NamedTensors ConnectionWeightGenerator::named_parameters() const {
  return {{"w1.weight", w1_}, {"w2.weight", w2_}, {"a", a_}};
}

// Before any work.
void DepthAggregate::check_states(std::int64_t num_states, const at::Tensor& newest) const {
  const std::int64_t wanted = generator_.num_sources();
  TORCH_CHECK_VALUE(num_states == wanted, "mudd::DepthAggregate: states must be ", wanted,
                    " tensors [B, T, D], got ", num_states);
  TORCH_CHECK_VALUE(newest.defined() && newest.dim() == 3 && newest.size(2) == generator_.d_model(),
                    "mudd::DepthAggregate: states must be [B, T, ", generator_.d_model(),
                    "] each, got ", newest.defined() ? newest.sizes() : at::IntArrayRef());
}

at::Tensor DepthAggregate::forward(const at::Tensor& states) const {
  TORCH_CHECK_VALUE(states.defined() && states.dim() == 4 && states.size(0) >= 1,
                    "mudd::DepthAggregate: states must be [J, B, T, D], got ",
                    states.defined() ? states.sizes() : at::IntArrayRef());
  const at::Tensor newest = states.select(0, states.size(0) - 1);
  check_states(states.size(0), newest);
  return depth_aggregate(states, generator_.forward(newest));
}

at::Tensor DepthAggregate::forward(at::TensorList states) const {
  TORCH_CHECK_VALUE(!states.empty(), "mudd::DepthAggregate: states must be ",
                    generator_.num_sources(), " tensors [B, T, D], got none");
  check_states(static_cast<std::int64_t>(states.size()), states.back());
  return depth_aggregate(states, generator_.forward(states.back()));
}

NamedTensors DepthAggregate::named_parameters() const {
  NamedTensors parameters = generator_.named_parameters();
  for (auto& [name, value] : parameters) {
    name = "generator." + name;
  }
  return parameters;
}

}  // namespace paperlab::mudd
