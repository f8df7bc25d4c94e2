#include "paperlab/nn/encoder_hf_config.h"

#include "paperlab/core/error.h"
#include "paperlab/nn/families/encoder_family_internal.h"

namespace paperlab::nn {
namespace {

constexpr std::int64_t kMaxLayers = 10'000;
constexpr double kMaxParameters = 1e13;  // above any model; their bytes fit into addresses

const EncoderType& read_type(Settings& settings) {
  std::string names;
  const Json* value = settings.find("model_type");
  for (const EncoderType* type : encoder_types()) {
    if (value != nullptr && *value == type->name) {
      return *type;
    }
    names += (names.empty() ? "" : ", ") + std::string(type->name);
  }
  settings.refuse("model_type", "one of " + names);
}

// What architectures[0] makes of the states, and its name.
struct Architecture {
  std::string name;
  EncoderOutput output;
};

std::vector<Architecture> architectures_of(const EncoderType& type) {
  const std::string classes = type.classes;
  std::vector<Architecture> known = {{classes + "Model", EncoderOutput::kStates}};
  if (type.vocab_size == 0) {
    known.push_back({classes + "ForImageClassification", EncoderOutput::kSequence});
    return known;
  }
  known.push_back({classes + "ForMaskedLM", EncoderOutput::kVocabulary});
  known.push_back({classes + "ForSequenceClassification", EncoderOutput::kSequence});
  known.push_back({classes + "ForTokenClassification", EncoderOutput::kTokens});
  return known;
}

// Files without it are those of the model itself, as for transformers' AutoModel.
Architecture read_architecture(Settings& settings, const EncoderType& type) {
  const Json* value = settings.find_value("architectures");
  const std::vector<Architecture> all = architectures_of(type);
  if (value == nullptr || (value->is_array() && value->empty())) {
    return all.front();
  }
  std::string names;
  for (const Architecture& known : all) {
    if (value->is_array() && value->front() == known.name) {
      return known;
    }
    names += (names.empty() ? "" : ", ") + known.name;
  }
  settings.refuse("architectures", "a list that begins with one of " + names);
}

// transformers writes labels for other numbers than its default, 2.
std::int64_t read_num_labels(Settings& settings) {
  const Json* labels = settings.find_value("id2label");
  if (labels == nullptr) {
    return settings.optional_size("num_labels").value_or(2);
  }
  if (!labels->is_object() || labels->empty()) {
    settings.refuse("id2label", "an object with a label for each number");
  }
  const auto count = static_cast<std::int64_t>(labels->size());
  if (settings.optional_size("num_labels").value_or(count) != count) {
    settings.refuse("num_labels", "as many as id2label has, " + std::to_string(count));
  }
  return count;
}

void read_sizes(Settings& settings, const EncoderType& type, DecoderConfig& block) {
  block.d_model = settings.size(type.keys.width, type.width);
  block.num_layers = settings.size(type.keys.layers, type.layers, kMaxLayers);
  block.num_heads = settings.size(type.keys.heads, type.heads);
  block.num_kv_heads = block.num_heads;
  block.d_ff = settings.size(type.keys.ffn, type.ffn);
  // ViT's heads have lanes of their own, or as many as fit.
  if (type.family != EncoderFamily::kVit && block.d_model % block.num_heads != 0) {
    settings.refuse(type.keys.width, std::string("a multiple of ") + type.keys.heads + " (" +
                                         std::to_string(block.num_heads) + ")");
  }
  block.head_dim = block.d_model / block.num_heads;
}

void read_block(Settings& settings, const EncoderType& type, DecoderConfig& block) {
  read_sizes(settings, type, block);
  block.norm = Norm::kLayer;
  block.norm_eps = type.norm_eps;
  if (type.keys.norm_eps != nullptr) {
    block.norm_eps = settings.number(type.keys.norm_eps, type.norm_eps, 0.0);
  }
  block.activation = read_hf_activation(settings, type.keys.activation, "gelu");
  block.has_gate = false;
  block.has_qkv_bias = block.has_out_bias = block.has_ffn_bias = true;
  block.init_std = settings.number("initializer_range", 0.02, 0.0);
}

void check_parameters(const Settings& settings, const EncoderConfig& config, const char* key) {
  const auto width = static_cast<double>(config.block.d_model);
  const auto lanes = static_cast<double>(config.block.num_heads * config.block.head_dim);
  const double block = 4.0 * width * lanes + 2.0 * width * static_cast<double>(config.block.d_ff);
  const double tables =
      static_cast<double>(config.block.vocab_size) + static_cast<double>(config.num_positions) +
      static_cast<double>(config.num_labels) + static_cast<double>(config.pooler_width) +
      2.0 * static_cast<double>(config.relative.span);
  const double patch = static_cast<double>(config.patches.num_channels) *
                       static_cast<double>(config.patches.height) *
                       static_cast<double>(config.patches.width);
  const double convolution = width / static_cast<double>(config.convolution.groups) *
                             static_cast<double>(config.convolution.kernel_size);
  const double total =
      width * (tables + patch + convolution) + static_cast<double>(config.block.num_layers) * block;
  if (total > kMaxParameters) {
    settings.refuse(key, "part of a model of at most 1e13 parameters");
  }
}

}  // namespace

std::vector<std::string> encoder_model_types() {
  std::vector<std::string> names;
  for (const EncoderType* type : encoder_types()) {
    names.emplace_back(type->name);
  }
  return names;
}

HfEncoderModel read_hf_encoder_config(const std::string& source, const Json& config) {
  Settings settings(source, config);
  const EncoderType& type = read_type(settings);
  const Architecture architecture = read_architecture(settings, type);
  if (settings.find_value("quantization_config") != nullptr) {
    settings.refuse("quantization_config", "absent: quantized weights are not read");
  }
  HfEncoderModel model;
  model.model_type = type.name;
  model.architecture = architecture.name;
  model.config.family = type.family;
  model.config.output = architecture.output;
  DecoderConfig& block = model.config.block;
  read_block(settings, type, block);
  block.has_tied_head = settings.flag("tie_word_embeddings", true);
  if (type.vocab_size > 0) {
    block.vocab_size = settings.size("vocab_size", type.vocab_size);
  }
  model.config.num_labels = read_num_labels(settings);
  type.read(settings, model.config);
  check_parameters(settings, model.config, type.keys.width);
  model.dtype = read_hf_dtype(settings);
  settings.only("is_decoder", false);
  allow_hf_harmless(settings);
  settings.allow("eos_token_id pad_token_id");  // pictures have no padding
  settings.refuse_others("the model type '" + model.model_type + "'");
  return model;
}

}  // namespace paperlab::nn
