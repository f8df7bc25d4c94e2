#include "paperlab/mudd/vit.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/cos.h>
#include <ATen/ops/full.h>
#include <ATen/ops/outer.h>
#include <ATen/ops/pow.h>
#include <ATen/ops/sin.h>
#include <ATen/ops/zeros.h>

#include <cmath>
#include <string>
#include <utility>

#include "paperlab/core/error.h"
#include "paperlab/core/json.h"
#include "paperlab/mudd/initial_values_internal.h"
#include "paperlab/mudd/model.h"
#include "paperlab/mudd/vit_config_internal.h"
#include "paperlab/nn/encoder_parameters.h"
#include "paperlab/nn/init.h"

namespace paperlab::mudd {
namespace {

using nn::Role;

constexpr char kFunction[] = "MuddViT";

bool is_norm(Role role) {
  return role == Role::kAttentionNorm || role == Role::kFfnNorm || role == Role::kFinalNorm;
}

at::Tensor of_backbone(const VitConfig& config, const nn::ParameterSpec& spec, std::uint64_t seed,
                       at::ScalarType dtype) {
  if (spec.is_bias) {
    return at::zeros(spec.shape, dtype);
  }
  if (is_norm(spec.role)) {
    return at::full(spec.shape, 1.0, dtype);
  }
  if (spec.role == Role::kPositionEmbed) {
    const nn::PatchConfig& patches = config.patches;
    return sincos_positions(patches.image_height / patches.height,
                            patches.image_width / patches.width, config.model.d_model, dtype);
  }
  double fan_in = 1.0;
  for (std::size_t i = 1; i < spec.shape.size(); ++i) {
    fan_in *= static_cast<double>(spec.shape[i]);
  }
  const double std = std::sqrt(2.0 / (fan_in + static_cast<double>(spec.shape[0])));
  return nn::normal_values(spec.shape, std, seed, stream_of(spec), dtype);
}

const char* name_of(Variant variant) {
  switch (variant) {
    case Variant::kMudd:
      return "mudd";
    case Variant::kStatic:
      return "static";
    case Variant::kDynamic:
      return "dynamic";
    case Variant::kMultiwayStatic:
      return "multiway_static";
    case Variant::kMultiwayDynamic:
      return "multiway_dynamic";
    default:
      return "base";
  }
}

Json name_of(PrePostNorm norm) {
  return norm == PrePostNorm::kLaterRevision ? Json("later_revision")
                                             : Json(norm == PrePostNorm::kEq10);
}

// By the names of Python's arguments.
Json settings_of(const VitConfig& config) {
  const nn::PatchConfig& patches = config.patches;
  const MuddConfig& model = config.model;
  return {{"model_type", "muddvit"},
          {"image_size", {patches.image_height, patches.image_width}},
          {"patch_size", {patches.height, patches.width}},
          {"num_channels", patches.num_channels},
          {"num_labels", config.num_labels},
          {"num_layers", model.num_layers},
          {"d_model", model.d_model},
          {"num_heads", model.num_heads},
          {"d_ff", model.d_ff},
          {"norm_eps", model.norm_eps},
          {"variant", name_of(model.variant)},
          {"pre_post_norm", name_of(model.pre_post_norm)},
          {"ways", model.ways},
          {"gelu", model.has_tanh_gelu ? "tanh" : "exact"},
          {"hidden_round", model.hidden_round},
          {"last_hidden_expand", model.last_hidden_expand},
          {"ffn_round", model.ffn_round},
          {"dilation", model.dilation},
          {"period", model.period},
          {"window", model.window ? Json(*model.window) : Json()}};
}

}  // namespace

at::Tensor sincos_positions(std::int64_t rows, std::int64_t columns, std::int64_t width,
                            at::ScalarType dtype) {
  require<ValueError>(
      rows >= 1 && columns >= 1 && width >= 4 && width % 4 == 0, "sincos_positions",
      "rows and columns >= 1 and a width of a multiple of 4",
      std::to_string(rows) + ", " + std::to_string(columns) + " and " + std::to_string(width));
  const std::int64_t count = width / 4;
  const double last = count > 1 ? static_cast<double>(count - 1) : 1.0;
  const at::Tensor place = at::arange(count, at::kDouble).div(last);
  const at::Tensor frequency = at::pow(at::full({}, 1e-4, at::kDouble), place);
  const at::Tensor x = at::outer(at::arange(columns, at::kDouble), frequency)
                           .unsqueeze(0)
                           .expand({rows, columns, count});
  const at::Tensor y = at::outer(at::arange(rows, at::kDouble), frequency)
                           .unsqueeze(1)
                           .expand({rows, columns, count});
  return at::cat({at::sin(x), at::cos(x), at::sin(y), at::cos(y)}, 2)
      .view({1, rows * columns, width})
      .to(dtype);
}

std::shared_ptr<nn::Encoder> make_encoder(const VitConfig& config, std::vector<at::Tensor> values) {
  const nn::EncoderConfig encoder = encoder_config(config);
  return std::make_shared<nn::Encoder>(
      encoder, parameter_specs(config), std::move(values),
      [connections = connections_of(config)](const nn::ParameterOf& of) {
        return make_connection(connections, of);
      });
}

std::vector<at::Tensor> initial_values(const VitConfig& config, std::uint64_t seed,
                                       at::ScalarType dtype) {
  const nn::EncoderConfig encoder = encoder_config(config);
  nn::check_initial_dtype(kFunction, dtype);
  std::vector<at::Tensor> values;
  for (const nn::ParameterSpec& spec : nn::encoder_parameter_specs(encoder)) {
    values.push_back(of_backbone(config, spec, seed, dtype));
    values.back().requires_grad_(spec.role != Role::kPositionEmbed);
  }
  const MuddConfig connections = connections_of(config);
  for (const Entry& entry : connection_entries(config)) {
    values.push_back(initial_value(connections, entry, seed, dtype).requires_grad_());
  }
  return values;
}

nn::HfEncoder new_vit(const VitConfig& config, std::uint64_t seed, at::ScalarType dtype) {
  nn::HfEncoder model;
  model.encoder = make_encoder(config, initial_values(config, seed, dtype));
  model.model.config = model.encoder->config();
  model.model.model_type = "muddvit";
  model.directory.config = settings_of(config);
  return model;
}

}  // namespace paperlab::mudd
