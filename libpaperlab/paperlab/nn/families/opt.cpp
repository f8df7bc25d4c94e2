// OPT. Source: Zhang et al., arXiv:2205.01068.
#include "paperlab/nn/families/family_internal.h"

namespace paperlab::nn {
namespace {

using C = DecoderConfig;

bool has_final_norm(const C& config) { return config.has_final_norm && config.has_norm_weights; }
bool has_own_head(const C& config) { return !config.has_tied_head; }
bool has_norms(const C& config) { return config.has_norm_weights; }

constexpr DecoderRow kRows[] = {
    {Role::kEmbed, "model.decoder.embed_tokens", "VW"},
    {Role::kPositionEmbed, "model.decoder.embed_positions", "PD"},
    {Role::kProjectOut, "model.decoder.project_out", "WD", has_projections},
    {Role::kProjectIn, "model.decoder.project_in", "DW", has_projections},
    {Role::kFinalNorm, "model.decoder.final_layer_norm", "D", has_final_norm, has_norms},
    {Role::kKey, "model.decoder.layers.#.self_attn.k_proj", "KD", nullptr, flag<&C::has_qkv_bias>},
    {Role::kValue, "model.decoder.layers.#.self_attn.v_proj", "KD", nullptr,
     flag<&C::has_qkv_bias>},
    {Role::kQuery, "model.decoder.layers.#.self_attn.q_proj", "QD", nullptr,
     flag<&C::has_qkv_bias>},
    {Role::kOut, "model.decoder.layers.#.self_attn.out_proj", "DQ", nullptr,
     flag<&C::has_out_bias>},
    {Role::kAttentionNorm, "model.decoder.layers.#.self_attn_layer_norm", "D", has_norms,
     has_norms},
    {Role::kUp, "model.decoder.layers.#.fc1", "FD", nullptr, flag<&C::has_ffn_bias>},
    {Role::kDown, "model.decoder.layers.#.fc2", "DF", nullptr, flag<&C::has_ffn_bias>},
    {Role::kFfnNorm, "model.decoder.layers.#.final_layer_norm", "D", has_norms, has_norms},
    {Role::kHead, "lm_head", "VW", has_own_head},
};

bool fits(const C& config) {
  return !config.has_fused_qkv && config.norm == Norm::kLayer && config.has_learned_positions &&
         config.rope.rotary_dim == 0 && !config.has_gate && !config.has_qk_norm &&
         !config.has_head_bias && !config.has_post_norms;
}

void read(Settings& settings, const ModelType& type, C& config) {
  SizeKeys keys;
  keys.ffn = "ffn_dim";
  read_sizes(settings, type, keys, config);
  config.embed_dim = settings.optional_size("word_embed_proj_dim").value_or(config.d_model);
  if (config.embed_dim > config.d_model) {  // no released model; the bound of sizes counts on it
    settings.refuse("word_embed_proj_dim", "at most hidden_size");
  }
  config.has_learned_positions = true;
  config.position_offset = 2;
  config.norm = Norm::kLayer;
  config.norm_eps = 1e-5;
  config.has_norm_weights = settings.flag("layer_norm_elementwise_affine", true);
  config.is_norm_after = !settings.flag("do_layer_norm_before", true);
  const bool is_removed = settings.flag("_remove_final_layer_norm", false);
  config.has_final_norm = !config.is_norm_after && !is_removed;
  config.activation = read_hf_activation(settings, "activation_function", "relu");
  config.has_gate = false;
  config.has_qkv_bias = config.has_out_bias = config.has_ffn_bias =
      settings.flag("enable_bias", true);
  config.init_std = settings.number("init_std", 0.02, 0.0);
  settings.allow("dropout activation_dropout layerdrop output_projection");
}

constexpr ModelType kTypes[] = {
    {"opt", "OPTForCausalLM", Family::kOpt, read, 50272, 768, 3072, 12, 12, 0, 0, 2048, true, 2, 1},
};

}  // namespace

const NameTable kOptNames = {
    kRows, "model.", fits,
    "the names of OPT need learned positions, LayerNorm, no has_fused_qkv, no has_gate and no "
    "has_qk_norm"};

std::span<const ModelType> opt_types() { return kTypes; }

}  // namespace paperlab::nn
