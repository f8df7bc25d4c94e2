#pragma once
// Linear layers of a model in Python: their names, functions in their place, hooks that see their
// inputs. A model has linears(), linear(name), add_linear_hook() and remove_linear_hook().

#include <pybind11/functional.h>
#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "paperlab/nn/linear.h"

namespace paperlab::bindings {

using LinearFunction = std::function<at::Tensor(const at::Tensor&)>;

// A Python function in a linear layer's place.
class PythonLinear final : public nn::Linear {
 public:
  PythonLinear(LinearFunction function, std::shared_ptr<const nn::Linear> original)
      : function_(std::move(function)), original_(std::move(original)) {}

  at::Tensor forward(const at::Tensor& x) const override {
    const nn::UserCode user_code;
    return function_(x);
  }

  const std::shared_ptr<const nn::Linear>& original() const { return original_; }

 private:
  LinearFunction function_;
  std::shared_ptr<const nn::Linear> original_;
};

inline std::shared_ptr<const nn::Linear> original_of(const nn::LinearSlot& slot) {
  const auto* python = dynamic_cast<const PythonLinear*>(slot.layer.get());
  return python == nullptr ? slot.layer : python->original();
}

// `part` is the member of a bound object that points at the model.
template <class Bound, class Part>
void register_linear_parts(pybind11::class_<Bound>& bound, Part part) {
  bound
      .def("linear_names",
           [part](const Bound& model) {
             std::vector<std::string> names;
             for (const nn::LinearSlot* slot : (model.*part)->linears()) {
               names.push_back(slot->name);
             }
             return names;
           })
      .def("linear_size",  // [out]; of no dense layer none
           [part](const Bound& model, const std::string& name) {
             const auto layer = original_of((model.*part)->linear(name));
             const auto* dense = dynamic_cast<const nn::DenseLinear*>(layer.get());
             return dense == nullptr ? std::nullopt : std::optional(dense->weight().size(0));
           })
      .def("replace_linear",
           [part](const Bound& model, const std::string& name, LinearFunction function) {
             nn::LinearSlot& slot = (model.*part)->linear(name);
             slot.layer = std::make_shared<PythonLinear>(std::move(function), original_of(slot));
           })
      .def("restore_linear",
           [part](const Bound& model, const std::string& name) {
             nn::LinearSlot& slot = (model.*part)->linear(name);
             slot.layer = original_of(slot);
           })
      .def("add_linear_hook",
           [part](const Bound& model, nn::LinearHook hook) {
             return (model.*part)->add_linear_hook(std::move(hook));
           })
      .def("remove_linear_hook",
           [part](const Bound& model, std::int64_t id) { (model.*part)->remove_linear_hook(id); });
}

}  // namespace paperlab::bindings
