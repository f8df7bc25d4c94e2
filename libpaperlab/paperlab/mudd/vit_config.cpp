#include "paperlab/mudd/vit_config.h"

#include <string>
#include <utility>

#include "paperlab/core/error.h"
#include "paperlab/mudd/vit_config_internal.h"
#include "paperlab/nn/encoder_parameters.h"

namespace paperlab::mudd {
namespace {

constexpr char kFunction[] = "MuddViT";
constexpr std::int64_t kMaxSize = 0x7fffffff;
constexpr std::int64_t kMaxHeadDim = 256;  // of the attention kernel
constexpr double kMaxParameters = 1e13;    // as of decoders

void check_size(const char* name, std::int64_t value, std::int64_t max = kMaxSize) {
  require<ValueError>(value >= 1 && value <= max, kFunction,
                      std::string(name) + " must be an integer from 1 to " + std::to_string(max),
                      std::to_string(value));
}

void check_patches(const nn::PatchConfig& patches) {
  check_size("num_channels", patches.num_channels);
  check_size("image_size (height)", patches.image_height);
  check_size("image_size (width)", patches.image_width);
  check_size("patch_size (height), at most the picture's,", patches.height, patches.image_height);
  check_size("patch_size (width), at most the picture's,", patches.width, patches.image_width);
}

void check_heads(const MuddConfig& model) {
  check_size("num_heads", model.num_heads);
  require<ValueError>(model.d_model % model.num_heads == 0 && model.d_model % 4 == 0, kFunction,
                      "d_model must be a multiple of num_heads (" +
                          std::to_string(model.num_heads) +
                          ") and of 4: positions are sines and cosines of two numbers",
                      std::to_string(model.d_model));
  check_size("the head's width d_model / num_heads", model.d_model / model.num_heads, kMaxHeadDim);
}

std::int64_t num_patches(const nn::PatchConfig& patches) {
  return (patches.image_height / patches.height) * (patches.image_width / patches.width);
}

void check_tables(const VitConfig& config) {
  const nn::PatchConfig& patches = config.patches;
  const double patch = static_cast<double>(patches.num_channels) *
                       static_cast<double>(patches.height) * static_cast<double>(patches.width);
  const auto positions = static_cast<double>(num_patches(patches));
  const double total = static_cast<double>(config.model.d_model) *
                       (patch + positions + static_cast<double>(config.num_labels));
  require<ValueError>(total <= kMaxParameters, kFunction,
                      "image_size, patch_size, num_channels, num_labels and d_model must make at "
                      "most 1e13 parameters",
                      std::to_string(total));
}

}  // namespace

MuddConfig connections_of(const VitConfig& config) {
  MuddConfig connections = config.model;
  connections.vocab_size = 1;
  connections.num_heads = connections.num_kv_heads = 1;
  connections.head_dim = 2;
  connections.has_qk_norm = false;
  connections.parallel_block = true;  // LayerNorm for K and V as well
  connections.rotary_pct = 0.0;
  connections.rope_base = 1.0;
  connections.max_positions = 1;
  return connections;
}

std::vector<Entry> connection_entries(const VitConfig& config) {
  std::vector<Entry> entries = entries_of(connections_of(config));
  std::erase_if(entries,
                [](const Entry& entry) { return entry.spec.role != nn::Role::kConnection; });
  return entries;
}

void check(const VitConfig& config) {
  const Variant variant = config.model.variant;
  require<ValueError>(variant == Variant::kBase || is_dense(variant), kFunction,
                      "variant must be base or one of dense connections", "another");
  check_patches(config.patches);
  check_size("num_labels", config.num_labels);
  check(connections_of(config), kFunction);
  check_heads(config.model);
  check_tables(config);
}

nn::EncoderConfig encoder_config(const VitConfig& config) {
  check(config);
  const MuddConfig& model = config.model;
  nn::EncoderConfig encoder;
  encoder.family = nn::EncoderFamily::kVit;
  encoder.output = nn::EncoderOutput::kSequence;
  encoder.is_norm_first = true;
  encoder.has_mean_pooling = true;
  encoder.num_labels = config.num_labels;
  encoder.patches = config.patches;
  encoder.num_positions = num_patches(config.patches);
  nn::DecoderConfig& block = encoder.block;
  block.num_layers = model.num_layers;
  block.d_model = model.d_model;
  block.num_heads = block.num_kv_heads = model.num_heads;
  block.head_dim = model.d_model / model.num_heads;
  block.d_ff = model.d_ff;
  block.ffn_dims = ffn_dims_of(model);
  block.max_positions = encoder.num_positions;
  block.norm = nn::Norm::kLayer;
  block.norm_eps = model.norm_eps;
  block.activation = nn::Activation::kGelu;
  block.has_gate = false;
  block.has_qkv_bias = block.has_out_bias = block.has_ffn_bias = true;
  return encoder;
}

std::vector<nn::ParameterSpec> parameter_specs(const VitConfig& config) {
  std::vector<nn::ParameterSpec> specs = nn::encoder_parameter_specs(encoder_config(config));
  for (nn::ParameterSpec& spec : specs) {
    spec.other_name.clear();
  }
  for (Entry& entry : connection_entries(config)) {
    specs.push_back(std::move(entry.spec));
  }
  return specs;
}

}  // namespace paperlab::mudd
