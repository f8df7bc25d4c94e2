// GPT-NeoX and Pythia. Source: Black et al., arXiv:2204.06745.
#include "paperlab/nn/families/family_internal.h"

namespace paperlab::nn {
namespace {

using C = DecoderConfig;

bool has_own_head(const C& config) { return !config.has_tied_head; }
bool has_layer_norm(const C& config) { return config.norm == Norm::kLayer; }

// transformers 5 calls the head lm_head in memory; files have either name.
constexpr DecoderRow kRows[] = {
    {Role::kEmbed, "gpt_neox.embed_in", "VD"},
    {Role::kAttentionNorm, "gpt_neox.layers.#.input_layernorm", "D", nullptr, has_layer_norm},
    {Role::kFfnNorm, "gpt_neox.layers.#.post_attention_layernorm", "D", nullptr, has_layer_norm},
    {Role::kQueryKeyValue, "gpt_neox.layers.#.attention.query_key_value", "AD", nullptr,
     flag<&C::has_qkv_bias>},
    {Role::kOut, "gpt_neox.layers.#.attention.dense", "DQ", nullptr, flag<&C::has_out_bias>},
    {Role::kUp, "gpt_neox.layers.#.mlp.dense_h_to_4h", "FD", nullptr, flag<&C::has_ffn_bias>},
    {Role::kDown, "gpt_neox.layers.#.mlp.dense_4h_to_h", "DF", nullptr, flag<&C::has_ffn_bias>},
    {Role::kFinalNorm, "gpt_neox.final_layer_norm", "D", nullptr, has_layer_norm},
    {Role::kHead, "embed_out", "VD", has_own_head, flag<&C::has_head_bias>, RowForm::kModule,
     "lm_head"},
};

bool fits(const C& config) {
  return config.has_fused_qkv && !config.has_gate && !config.has_qk_norm &&
         config.qkv_order == QkvOrder::kHeadsFirst && !config.has_learned_positions &&
         !has_projections(config) && config.has_norm_weights && config.has_final_norm &&
         !config.is_norm_after && !config.has_post_norms;
}

void read(Settings& settings, const ModelType& type, C& config) {
  read_sizes(settings, type, {}, config);
  RopeForm form;
  form.base_key = "rotary_emb_base";
  form.share_key = "rotary_pct";
  form.share = 0.25;
  read_rope(settings, form, config);
  config.norm = Norm::kLayer;
  config.norm_eps = settings.number("layer_norm_eps", 1e-5, 0.0);
  config.activation = read_hf_activation(settings, "hidden_act", "gelu");
  config.init_std = settings.number("initializer_range", 0.02, 0.0);
  config.has_gate = false;
  config.has_fused_qkv = true;
  config.has_ffn_bias = true;
  config.has_qkv_bias = config.has_out_bias = settings.flag("attention_bias", true);
  config.is_parallel = settings.flag("use_parallel_residual", true);
}

constexpr ModelType kTypes[] = {
    {"gpt_neox", "GPTNeoXForCausalLM", Family::kGptNeoX, read, 50432, 6144, 24576, 44, 64, 0, 0,
     2048},
};

}  // namespace

const NameTable kGptNeoXNames = {
    kRows,
    {},
    fits,
    "the names of GPT-NeoX need has_fused_qkv by heads, no has_gate and no has_qk_norm, rotary "
    "positions and norms before the sublayers"};

std::span<const ModelType> gpt_neox_types() { return kTypes; }

}  // namespace paperlab::nn
