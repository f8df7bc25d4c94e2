#include "paperlab/nn/encoder_parameters.h"

#include <algorithm>
#include <utility>

#include "paperlab/nn/families/encoder_family_internal.h"

namespace paperlab::nn {
namespace {

using Config = EncoderConfig;

std::int64_t size_of(char letter, const Config& config, std::int64_t layer) {
  switch (letter) {
    case '1':
      return 1;
    case 'P':
      return config.num_positions;
    case 'T':
      return config.num_token_types;
    case 'L':
      return config.num_labels;
    case 'O':
      return config.pooler_width;
    case 'R':
      return 2 * config.relative.span;
    case 'G':
      return config.block.d_model / config.convolution.groups;
    case 'K':
      return config.convolution.kernel_size;
    case 'C':
      return config.patches.num_channels;
    case 'Y':
      return config.patches.height;
    case 'X':
      return config.patches.width;
    default:
      return size_of_block(letter, config.block, layer);
  }
}

std::string without(std::string_view root, const std::string& name) {
  return name.starts_with(root) ? name.substr(root.size()) : name;
}

// x.weight -> x
std::string layer_of(const std::string& parameter) {
  return parameter.substr(0, parameter.rfind('.'));
}

bool is_norm_of_tensorflow(const ParameterSpec& spec) {
  return spec.name.ends_with("LayerNorm.weight") || spec.name.ends_with("LayerNorm.bias");
}

// x.LayerNorm.weight -> x.LayerNorm.gamma
std::string tensorflow_name(const std::string& name) {
  const std::size_t dot = name.rfind('.');
  return name.substr(0, dot) + (name.ends_with(".bias") ? ".beta" : ".gamma");
}

}  // namespace

std::vector<ParameterSpec> encoder_parameter_specs(const EncoderConfig& config) {
  const EncoderType& type = type_of(config.family);
  std::vector<ParameterSpec> specs = specs_of_rows<Config>(
      type.rows, config, config.block.num_layers,
      [&](char letter, std::int64_t layer) { return size_of(letter, config, layer); });
  if (config.output == EncoderOutput::kStates) {  // the model alone has no prefix
    for (ParameterSpec& spec : specs) {
      spec.name = without(type.root, spec.name);
      spec.other_name = without(type.root, spec.other_name);
    }
  }
  return specs;
}

std::map<std::string, std::string> other_linear_names(const EncoderConfig& config) {
  std::map<std::string, std::string> names;
  for (const ParameterSpec& spec : encoder_parameter_specs(config)) {
    const bool is_matrix = spec.shape.size() == 2 && !spec.is_bias;
    if (is_matrix && !spec.other_name.empty()) {
      names.emplace(layer_of(spec.name), layer_of(spec.other_name));
      names.emplace(layer_of(spec.other_name), layer_of(spec.name));
    }
  }
  return names;
}

std::map<std::string, std::string> encoder_copies(const EncoderConfig& config) {
  if (!has_tied_vocabulary(config)) {
    return {};
  }
  const std::string layer = vocabulary_layer_name(config);
  std::map<std::string, std::string> copies;
  for (const ParameterSpec& spec : encoder_parameter_specs(config)) {
    const bool is_bias = spec.role == Role::kHead && spec.is_bias;
    const std::string copy = layer + (is_bias ? ".bias" : ".weight");
    if ((spec.role == Role::kEmbed || is_bias) && copy != spec.name) {
      copies.emplace(copy, spec.name);
    }
  }
  return copies;
}

std::string vocabulary_layer_name(const EncoderConfig& config) {
  EncoderConfig untied = config;
  untied.block.has_tied_head = false;
  for (const ParameterSpec& spec : encoder_parameter_specs(untied)) {
    if (spec.role == Role::kHead) {  // its weight, or the bias where there is never one
      return layer_of(spec.name);
    }
  }
  return {};
}

std::vector<std::string> encoder_file_names(const EncoderConfig& config,
                                            const ParameterSpec& spec) {
  const std::string_view root = type_of(config.family).root;
  std::vector<std::string> names = {without(root, spec.name)};
  if (config.output == EncoderOutput::kStates) {
    names = {std::string(root) + spec.name};
  }
  if (is_norm_of_tensorflow(spec)) {
    names.push_back(tensorflow_name(spec.name));
    names.push_back(tensorflow_name(names.front()));
  }
  return names;
}

bool is_of_other_head(const EncoderConfig& config, std::string_view name) {
  const std::string_view root = type_of(config.family).root;
  const std::string_view plain = name.starts_with(root) ? name.substr(root.size()) : name;
  const bool has_no_head = config.output == EncoderOutput::kStates;
  const bool has_no_positions = config.num_positions == 0;  // they may be stored all the same
  return plain.starts_with("pooler.dense.") || plain.starts_with("cls.seq_relationship.") ||
         plain.starts_with("mask_predictions.") ||
         (has_no_positions && plain == "embeddings.position_embeddings.weight") ||
         (has_no_head &&
          (plain.starts_with("cls.predictions.") || plain.starts_with("lm_predictions.") ||
           plain.starts_with("lm_head.") || plain.starts_with("vocab_") ||
           plain.starts_with("classifier.") || plain.starts_with("pre_classifier.")));
}

bool is_encoder_buffer(std::string_view name) {
  return name.ends_with("embeddings.position_ids") || name.ends_with("embeddings.token_type_ids");
}

}  // namespace paperlab::nn
