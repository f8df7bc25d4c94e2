// ViT. Source: Dosovitskiy et al., arXiv:2010.11929.
#include <string>
#include <tuple>
#include <utility>

#include "paperlab/nn/families/encoder_family_internal.h"

namespace paperlab::nn {
namespace {

using C = EncoderConfig;
using rows::always;
using rows::has_state_pooler;
using rows::is_labels;

bool has_class_token(const C& c) { return !c.has_mean_pooling; }
bool has_qkv_bias(const C& c) { return c.block.has_qkv_bias; }

constexpr EncoderRow kRows[] = {
    {Role::kClassToken, "vit.embeddings.cls_token", "11D", has_class_token, nullptr,
     RowForm::kTensor},
    {Role::kPositionEmbed, "vit.embeddings.position_embeddings", "1PD", nullptr, nullptr,
     RowForm::kTensor},
    {Role::kPatchEmbed, "vit.embeddings.patch_embeddings.projection", "DCYX", nullptr, always},
    {Role::kQuery, "vit.encoder.layer.#.attention.attention.query", "QD", nullptr, has_qkv_bias,
     RowForm::kModule, "vit.layers.#.attention.q_proj"},
    {Role::kKey, "vit.encoder.layer.#.attention.attention.key", "QD", nullptr, has_qkv_bias,
     RowForm::kModule, "vit.layers.#.attention.k_proj"},
    {Role::kValue, "vit.encoder.layer.#.attention.attention.value", "QD", nullptr, has_qkv_bias,
     RowForm::kModule, "vit.layers.#.attention.v_proj"},
    {Role::kOut, "vit.encoder.layer.#.attention.output.dense", "DQ", nullptr, always,
     RowForm::kModule, "vit.layers.#.attention.o_proj"},
    {Role::kAttentionNorm, "vit.encoder.layer.#.layernorm_before", "D", nullptr, always,
     RowForm::kModule, "vit.layers.#.layernorm_before"},
    {Role::kFfnNorm, "vit.encoder.layer.#.layernorm_after", "D", nullptr, always, RowForm::kModule,
     "vit.layers.#.layernorm_after"},
    {Role::kUp, "vit.encoder.layer.#.intermediate.dense", "FD", nullptr, always, RowForm::kModule,
     "vit.layers.#.mlp.fc1"},
    {Role::kDown, "vit.encoder.layer.#.output.dense", "DF", nullptr, always, RowForm::kModule,
     "vit.layers.#.mlp.fc2"},
    {Role::kFinalNorm, "vit.layernorm", "D", nullptr, always},
    {Role::kPooler, "vit.pooler.dense", "OD", has_state_pooler, always},
    {Role::kHead, "classifier", "LD", is_labels, always},
};

// One number for both, or [height, width].
std::pair<std::int64_t, std::int64_t> read_height_width(Settings& settings, const char* key,
                                                        std::int64_t absent) {
  const Json* value = settings.find(key);
  if (value == nullptr || !value->is_array()) {
    const std::int64_t size = settings.size(key, absent);
    return {size, size};
  }
  const auto at = [&](std::size_t i) {
    const std::int64_t size = i < value->size() ? integer((*value)[i]).value_or(0) : 0;
    if (value->size() != 2 || size < 1 || size > kMaxSize) {
      settings.refuse(key, "an integer >= 1 or a list [height, width]");
    }
    return size;
  };
  const std::int64_t height = at(0);
  return {height, at(1)};
}

void read(Settings& settings, C& config) {
  PatchConfig& patches = config.patches;
  std::tie(patches.image_height, patches.image_width) =
      read_height_width(settings, "image_size", 224);
  std::tie(patches.height, patches.width) = read_height_width(settings, "patch_size", 16);
  patches.num_channels = settings.size("num_channels", 3);
  if (patches.height > patches.image_height || patches.width > patches.image_width) {
    settings.refuse("patch_size", "at most image_size");
  }
  const std::int64_t rows = patches.image_height / patches.height;
  const std::int64_t columns = patches.image_width / patches.width;
  if (rows > kMaxSize / columns - 1) {
    settings.refuse("image_size", "fewer than " + std::to_string(kMaxSize) + " patches");
  }
  config.num_positions = config.block.max_positions = rows * columns + 1;
  config.is_norm_first = true;
  config.block.has_qkv_bias = settings.flag("qkv_bias", true);
  config.block.head_dim = settings.optional_size("head_dim").value_or(config.block.head_dim);
  if (config.block.head_dim < 1) {
    settings.refuse("hidden_size", "at least num_attention_heads, or head_dim must be given");
  }
  config.has_pooler = config.output == EncoderOutput::kStates;
  config.pooler_width = settings.optional_size("pooler_output_size").value_or(config.block.d_model);
  settings.allow("encoder_stride pooler_act tie_word_embeddings");
}

}  // namespace

const EncoderType kVitType = {
    "vit", "ViT", EncoderFamily::kVit, kRows, "vit.", read, {}, 0, 768, 12, 12, 3072, 1e-12};

}  // namespace paperlab::nn
