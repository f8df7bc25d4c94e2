// GPT-2. Source: Radford et al., "Language Models are Unsupervised Multitask Learners", 2019.
#include <cmath>

#include "paperlab/nn/families/family_internal.h"

namespace paperlab::nn {
namespace {

using C = DecoderConfig;

bool always(const C& /*config*/) { return true; }
bool has_own_head(const C& config) { return !config.has_tied_head; }

// Matrices are stored as [in, out].
constexpr RowForm kConv = RowForm::kTransposed;
constexpr DecoderRow kRows[] = {
    {Role::kEmbed, "transformer.wte", "VD"},
    {Role::kPositionEmbed, "transformer.wpe", "PD"},
    {Role::kAttentionNorm, "transformer.h.#.ln_1", "D", nullptr, always},
    {Role::kQueryKeyValue, "transformer.h.#.attn.c_attn", "DA", nullptr, always, kConv},
    {Role::kOut, "transformer.h.#.attn.c_proj", "QD", nullptr, always, kConv},
    {Role::kFfnNorm, "transformer.h.#.ln_2", "D", nullptr, always},
    {Role::kUp, "transformer.h.#.mlp.c_fc", "DF", nullptr, always, kConv},
    {Role::kDown, "transformer.h.#.mlp.c_proj", "FD", nullptr, always, kConv},
    {Role::kFinalNorm, "transformer.ln_f", "D", nullptr, always},
    {Role::kHead, "lm_head", "VD", has_own_head},
};

bool fits(const C& config) {
  return config.has_fused_qkv && config.qkv_order == QkvOrder::kPartsFirst && config.has_qkv_bias &&
         config.has_out_bias && config.has_ffn_bias && config.norm == Norm::kLayer &&
         config.has_learned_positions && config.rope.rotary_dim == 0 && !config.has_gate &&
         !config.has_qk_norm && !config.has_head_bias && !has_projections(config) &&
         config.has_norm_weights && config.has_final_norm && !config.is_norm_after &&
         !config.has_post_norms;
}

// Logits of attention are divided by sqrt(head_dim) or not, and perhaps by the layer's number.
void read_attention_scales(Settings& settings, C& config) {
  const bool is_scaled = settings.flag("scale_attn_weights", true);
  const bool is_by_layer = settings.flag("scale_attn_by_inverse_layer_idx", false);
  if (is_scaled && !is_by_layer) {
    return;
  }
  const double scale = is_scaled ? 1.0 : std::sqrt(static_cast<double>(config.head_dim));
  for (std::int64_t layer = 0; layer < config.num_layers; ++layer) {
    config.attention_scales.push_back(is_by_layer ? scale / static_cast<double>(layer + 1) : scale);
  }
}

void read(Settings& settings, const ModelType& type, C& config) {
  read_sizes(settings, type, {"n_embd", "n_inner", "n_layer", "n_head", "n_positions"}, config);
  config.has_learned_positions = true;
  config.norm = Norm::kLayer;
  config.norm_eps = settings.number("layer_norm_epsilon", 1e-5, 0.0);
  config.activation = read_hf_activation(settings, "activation_function", "gelu_new");
  config.init_std = settings.number("initializer_range", 0.02, 0.0);
  config.has_gate = false;
  config.has_fused_qkv = true;
  config.qkv_order = QkvOrder::kPartsFirst;
  config.has_qkv_bias = config.has_out_bias = config.has_ffn_bias = true;
  read_attention_scales(settings, config);
  // The softmax is never narrower than float32 here, which is all that reorder_and_upcast_attn
  // says; the rest is of other heads, and of files before n_positions.
  settings.allow(
      "reorder_and_upcast_attn n_ctx summary_type summary_use_proj summary_activation "
      "summary_proj_to_labels summary_first_dropout predict_special_tokens output_past _num_labels "
      "model_parallel");
}

constexpr ModelType kTypes[] = {
    {"gpt2", "GPT2LMHeadModel", Family::kGpt2, read, 50257, 768, 0, 12, 12, 0, 0, 1024, true,
     50256},
};

}  // namespace

const NameTable kGpt2Names = {
    kRows, "transformer.", fits,
    "the names of GPT-2 need learned positions, LayerNorm before the sublayers, has_fused_qkv by "
    "parts, all biases but the head's and no has_gate"};

std::span<const ModelType> gpt2_types() { return kTypes; }

}  // namespace paperlab::nn
