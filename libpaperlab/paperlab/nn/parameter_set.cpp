#include "paperlab/nn/parameter_set.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <sstream>
#include <utility>

#include "paperlab/core/error.h"
#include "paperlab/ops/dispatch_rules_internal.h"

namespace paperlab::nn {
namespace {

template <class T>
std::string text_of(const T& value) {
  std::ostringstream text;
  text << value;
  return text.str();
}

void check_value(const std::string& owner, const ParameterSpec& spec, const at::Tensor& value) {
  const char* function = owner.c_str();
  require<ValueError>(value.defined(), function, "a tensor for " + spec.name, "none");
  require<ShapeError>(value.sizes() == at::IntArrayRef(spec.shape), function,
                      spec.name + " of shape " + text_of(at::IntArrayRef(spec.shape)),
                      text_of(value.sizes()));
  const at::ScalarType dtype = value.scalar_type();
  require<DTypeError>(
      dtype == at::kFloat || dtype == at::kDouble || dtype == at::kBFloat16 || dtype == at::kHalf,
      function, spec.name + " in float32, float64, bfloat16 or float16", c10::toString(dtype));
}

}  // namespace

ParameterSet::ParameterSet(std::string owner, std::vector<ParameterSpec> specs,
                           std::vector<at::Tensor> values)
    : owner_(std::move(owner)) {
  require<ValueError>(!specs.empty() && specs.size() == values.size(), owner_.c_str(),
                      std::to_string(specs.size()) + " parameters", std::to_string(values.size()));
  for (std::size_t i = 0; i < specs.size(); ++i) {
    check_value(owner_, specs[i], values[i]);
    list_.push_back({std::move(specs[i]), std::make_shared<at::Tensor>(std::move(values[i]))});
  }
}

const NamedParameter* ParameterSet::entry(Role role, std::int64_t layer, bool is_bias) const {
  const auto found = std::find_if(list_.begin(), list_.end(), [&](const NamedParameter& p) {
    return p.spec.role == role && p.spec.layer == layer && p.spec.is_bias == is_bias;
  });
  return found == list_.end() ? nullptr : &*found;
}

const NamedParameter& ParameterSet::named(const std::string& name) const {
  const auto found = std::find_if(list_.begin(), list_.end(),
                                  [&](const NamedParameter& p) { return p.spec.name == name; });
  require<ValueError>(found != list_.end(), owner_.c_str(), "the name of a parameter", name);
  return *found;
}

std::shared_ptr<at::Tensor> ParameterSet::find(Role role, std::int64_t layer, bool is_bias) const {
  const NamedParameter* found = entry(role, layer, is_bias);
  return found == nullptr ? nullptr : found->value;
}

void ParameterSet::set(const std::string& name, const at::Tensor& value) {
  const NamedParameter& parameter = named(name);
  check_value(owner_, parameter.spec, value);
  *parameter.value = value;
}

void ParameterSet::to(const at::Device& device) {
  for (const NamedParameter& parameter : list_) {
    at::Tensor& value = *parameter.value;
    if (value.device() != device) {
      value = value.detach().to(device).set_requires_grad(value.requires_grad());
    }
  }
}

// Shapes, dtypes and devices change in place: Module.to(), tensor.data = ... Forward gradients
// would be lost below autograd.
void ParameterSet::check(const char* function) const {
  TORCH_CHECK_VALUE(!first().is_meta(), function, ": parameters must have data, got meta tensors");
  for (const auto& [spec, value] : list_) {
    ops::refuse_forward_gradient(function, *value);
    TORCH_CHECK_VALUE(value->sizes() == at::IntArrayRef(spec.shape), function, ": ", spec.name,
                      " must be of shape ", at::IntArrayRef(spec.shape), ", got ", value->sizes());
    TORCH_CHECK_TYPE(
        value->scalar_type() == first().scalar_type() && value->device() == first().device(),
        function, ": ", spec.name, " must be ", first().scalar_type(), " on ", first().device(),
        " as the other parameters, got ", value->scalar_type(), " on ", value->device());
  }
}

LinearSlot ParameterSet::linear(Role role, std::int64_t layer) const {
  const NamedParameter* found = entry(role, layer);
  if (found == nullptr) {
    return {};
  }
  const std::string& name = found->spec.name;
  return {name.substr(0, name.rfind('.')),
          std::make_shared<DenseLinear>(found->value, find(role, layer, true),
                                        found->spec.is_transposed)};
}

std::shared_ptr<const NormLayer> ParameterSet::layer_norm(Role role, std::int64_t layer,
                                                          double eps) const {
  auto weight = find(role, layer);
  if (weight == nullptr) {
    return nullptr;
  }
  return std::make_shared<LayerNorm>(std::move(weight), find(role, layer, true), eps);
}

}  // namespace paperlab::nn
