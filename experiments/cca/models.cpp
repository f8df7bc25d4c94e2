#include "experiments/cca/models.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/ones.h>

#include <algorithm>
#include <string>
#include <utility>

#include "paperlab/nn/init.h"
#include "paperlab/nn/parameters.h"

namespace paperlab::experiments::cca {
namespace {

constexpr double kStd = 0.02;
constexpr double kOutStd = 0.01;

bool is_norm(nn::Role role) {
  return role == nn::Role::kAttentionNorm || role == nn::Role::kFfnNorm ||
         role == nn::Role::kFinalNorm;
}

nn::DecoderConfig config_of(const Shape& shape) {
  nn::DecoderConfig config;
  config.vocab_size = shape.vocab_size;
  config.num_layers = shape.num_layers;
  config.d_model = shape.d_model;
  config.num_heads = shape.num_heads;
  config.num_kv_heads = shape.num_heads;
  config.head_dim = shape.d_model / shape.num_heads;
  config.d_ff = 4 * shape.d_model;
  config.max_positions = shape.max_positions;
  config.activation = nn::Activation::kGelu;
  config.has_gate = false;
  config.has_tied_head = true;
  config.rope.rotary_dim = config.head_dim;
  config.rope.max_positions = shape.max_positions;
  return config;
}

}  // namespace

std::shared_ptr<nn::Decoder> new_model(const Shape& shape, std::uint64_t seed,
                                       const at::TensorOptions& options) {
  const nn::DecoderConfig config = config_of(shape);
  const at::ScalarType dtype = c10::typeMetaToScalarType(options.dtype());
  std::vector<at::Tensor> values;
  std::uint64_t stream = 0;
  for (const nn::ParameterSpec& spec : nn::parameter_specs(config, nn::Family::kLlama)) {
    const bool is_out = spec.role == nn::Role::kOut || spec.role == nn::Role::kDown;
    const at::Tensor value =
        is_norm(spec.role)
            ? at::ones(spec.shape, at::TensorOptions().dtype(dtype))
            : nn::normal_values(spec.shape, is_out ? kOutStd : kStd, seed, stream, dtype);
    values.push_back(value.to(options.device()).requires_grad_());
    ++stream;
  }
  return std::make_shared<nn::Decoder>(config, nn::Family::kLlama, std::move(values));
}

std::vector<at::Tensor> values_of(const nn::Decoder& decoder) {
  std::vector<at::Tensor> values;
  values.reserve(decoder.parameters().size());
  for (const nn::Decoder::Parameter& parameter : decoder.parameters()) {
    values.push_back(parameter.value->detach());
  }
  return values;
}

std::shared_ptr<nn::Decoder> trainable(const nn::Decoder& decoder,
                                       const std::vector<at::Tensor>& values) {
  std::vector<at::Tensor> copies;
  copies.reserve(values.size());
  for (const at::Tensor& value : values) {
    copies.push_back(value.detach().clone().requires_grad_());
  }
  return decoder.with_values(std::move(copies));
}

Minimizer::Minimizer(std::vector<train::Trained> parameters, const Recipe& recipe)
    : recipe_(recipe) {
  values_.reserve(parameters.size());
  for (const train::Trained& parameter : parameters) {
    values_.push_back(parameter.value);
  }
  train::OptimizerOptions options;
  options.beta2 = 0.98;
  optimizer_ = train::make_optimizer(std::move(parameters), options);
}

void Minimizer::step(const at::Tensor& loss) {
  loss.backward();
  std::vector<at::Tensor> gradients;
  gradients.reserve(values_.size());
  for (const at::Tensor& value : values_) {
    if (value.grad().defined()) {
      gradients.push_back(value.grad());
    }
  }
  train::clip_gradients(gradients, recipe_.clip_norm);
  const double part = recipe_.warmup_steps == 0 ? 1.0
                                                : static_cast<double>(num_steps_ + 1) /
                                                      static_cast<double>(recipe_.warmup_steps);
  optimizer_->step(recipe_.learning_rate * std::min(1.0, part));
  for (at::Tensor& value : values_) {
    value.mutable_grad().reset();
  }
  ++num_steps_;
}

std::vector<train::Trained> all_of(const nn::Decoder& decoder, const Recipe& recipe,
                                   const at::Tensor& further) {
  std::vector<train::Trained> all;
  all.reserve(decoder.parameters().size() + 1);
  for (const nn::Decoder::Parameter& parameter : decoder.parameters()) {
    all.push_back({parameter.spec.name, *parameter.value, recipe.weight_decay});
  }
  if (further.defined()) {
    all.push_back({"further", further, recipe.weight_decay});
  }
  return all;
}

}  // namespace paperlab::experiments::cca
