#include "paperlab/nn/encoder_parameters.h"

#include <algorithm>
#include <utility>

#include "paperlab/nn/families/encoder_family_internal.h"

namespace paperlab::nn {
namespace {

using Config = EncoderConfig;

std::int64_t size_of(char letter, const Config& config) {
  switch (letter) {
    case 'V':
      return config.block.vocab_size;
    case 'D':
      return config.block.d_model;
    case 'F':
      return config.block.d_ff;
    case 'Q':
      return config.block.num_heads * config.block.head_dim;
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
    default:  // '1'
      return 1;
  }
}

std::string without(std::string_view root, const std::string& name) {
  return name.starts_with(root) ? name.substr(root.size()) : name;
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
      [&](char letter, std::int64_t /*layer*/) { return size_of(letter, config); });
  if (config.output == EncoderOutput::kStates) {  // the model alone has no prefix
    for (ParameterSpec& spec : specs) {
      spec.name = without(type.root, spec.name);
      spec.other_name = without(type.root, spec.other_name);
    }
  }
  return specs;
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
      return spec.name.substr(0, spec.name.rfind('.'));
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
  const bool is_masked_model = config.output == EncoderOutput::kStates;
  return plain.starts_with("pooler.dense.") || plain.starts_with("cls.seq_relationship.") ||
         plain.starts_with("mask_predictions.") ||
         (is_masked_model &&
          (plain.starts_with("cls.predictions.") || plain.starts_with("lm_predictions.") ||
           plain.starts_with("lm_head.") || plain.starts_with("vocab_")));
}

bool is_encoder_buffer(std::string_view name) {
  return name.ends_with("embeddings.position_ids") || name.ends_with("embeddings.token_type_ids");
}

}  // namespace paperlab::nn
