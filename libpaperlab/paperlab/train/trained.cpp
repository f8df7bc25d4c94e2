#include <fnmatch.h>

#include <algorithm>

#include "paperlab/core/error.h"
#include "paperlab/train/step_internal.h"
#include "paperlab/train/trained_internal.h"

namespace paperlab::train {
namespace {

bool decays(const std::string& name, const std::vector<std::string>& no_decay) {
  return std::none_of(no_decay.begin(), no_decay.end(), [&name](const std::string& pattern) {
    return fnmatch(pattern.c_str(), name.c_str(), 0) == 0;
  });
}

// What the model must be for training; nothing of it is changed.
void check_model(const Model& model, const std::vector<std::string>& no_decay) {
  const auto& parameters = model.parameters();
  for (const auto& parameter : parameters) {
    require<ValueError>(!parameter.value->is_inference(), kFunction,
                        "model must be made outside of inference mode",
                        "the inference tensor '" + parameter.spec.name + "'");
  }
  // Lists for several architectures name what this one does not have; a list of typing errors alone
  // names nothing.
  const bool is_effective = std::any_of(
      parameters.begin(), parameters.end(),
      [&no_decay](const auto& parameter) { return !decays(parameter.spec.name, no_decay); });
  require<ValueError>(no_decay.empty() || is_effective, kFunction,
                      "no_decay must match the name of a parameter",
                      no_decay.empty() ? "" : "'" + no_decay.front() + "'");
}

}  // namespace

std::vector<Trained> trained_parameters(const Model& model, const FitOptions& options) {
  check_model(model, options.no_decay);
  std::vector<Trained> trained;
  for (const auto& parameter : model.parameters()) {
    if (parameter.value->requires_grad()) {
      const std::string& name = parameter.spec.name;
      require<ValueError>(parameter.value->is_leaf(), kFunction,
                          "parameter '" + name + "' must be a leaf", "a computed tensor");
      trained.push_back(
          {name, *parameter.value, decays(name, options.no_decay) ? options.weight_decay : 0.0});
    }
  }
  require<ValueError>(!trained.empty(), kFunction, "a parameter that requires a gradient", "none");
  const at::ScalarType type = trained.front().value.scalar_type();
  require<ValueError>(!options.computes_in_bfloat16 || type == at::kFloat, kFunction,
                      "precision bfloat16 needs parameters in float32", at::toString(type));
  return trained;
}

std::vector<std::string> frozen_names(const Model& model) {
  std::vector<std::string> names;
  for (const auto& parameter : model.parameters()) {
    if (!parameter.value->requires_grad()) {
      names.push_back(parameter.spec.name);
    }
  }
  return names;
}

}  // namespace paperlab::train
