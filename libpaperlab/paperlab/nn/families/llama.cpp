// Llama, Mistral, Qwen2 (Qwen2.5 too), Qwen3; Gemma has the same names.
// Sources: Touvron et al., arXiv:2302.13971; Jiang et al., arXiv:2310.06825; Qwen2.5,
// arXiv:2412.15115; Qwen3, arXiv:2505.09388.
#include <string_view>

#include "paperlab/nn/families/family_internal.h"

namespace paperlab::nn {
namespace {

using C = DecoderConfig;

bool has_own_head(const C& config) { return !config.has_tied_head; }
bool has_layer_norm(const C& config) { return config.norm == Norm::kLayer; }
bool has_plain_norms(const C& config) { return !config.has_post_norms; }

// `post_attention_layernorm` stands before the feed-forward part, with post-norms behind the
// attention.
constexpr DecoderRow kRows[] = {
    {Role::kEmbed, "model.embed_tokens", "VD"},
    {Role::kQuery, "model.layers.#.self_attn.q_proj", "QD", nullptr, flag<&C::has_qkv_bias>},
    {Role::kKey, "model.layers.#.self_attn.k_proj", "KD", nullptr, flag<&C::has_qkv_bias>},
    {Role::kValue, "model.layers.#.self_attn.v_proj", "KD", nullptr, flag<&C::has_qkv_bias>},
    {Role::kOut, "model.layers.#.self_attn.o_proj", "DQ", nullptr, flag<&C::has_out_bias>},
    {Role::kQueryNorm, "model.layers.#.self_attn.q_norm", "H", flag<&C::has_qk_norm>},
    {Role::kKeyNorm, "model.layers.#.self_attn.k_norm", "H", flag<&C::has_qk_norm>},
    {Role::kGate, "model.layers.#.mlp.gate_proj", "FD", flag<&C::has_gate>, flag<&C::has_ffn_bias>},
    {Role::kUp, "model.layers.#.mlp.up_proj", "FD", nullptr, flag<&C::has_ffn_bias>},
    {Role::kDown, "model.layers.#.mlp.down_proj", "DF", nullptr, flag<&C::has_ffn_bias>},
    {Role::kAttentionNorm, "model.layers.#.input_layernorm", "D", nullptr, has_layer_norm},
    {Role::kFfnNorm, "model.layers.#.post_attention_layernorm", "D", has_plain_norms,
     has_layer_norm},
    {Role::kPostAttentionNorm, "model.layers.#.post_attention_layernorm", "D",
     flag<&C::has_post_norms>, has_layer_norm},
    {Role::kFfnNorm, "model.layers.#.pre_feedforward_layernorm", "D", flag<&C::has_post_norms>,
     has_layer_norm},
    {Role::kPostFfnNorm, "model.layers.#.post_feedforward_layernorm", "D", flag<&C::has_post_norms>,
     has_layer_norm},
    {Role::kFinalNorm, "model.norm", "D", nullptr, has_layer_norm},
    {Role::kHead, "lm_head", "VD", has_own_head, flag<&C::has_head_bias>},
};

bool fits(const C& config) {
  return !config.has_fused_qkv && !config.has_learned_positions && !has_projections(config) &&
         config.has_norm_weights && config.has_final_norm && !config.is_norm_after;
}

// Layers from max_window_layers on have the window, or those that layer_types names.
void read_qwen_windows(Settings& settings, C& config) {
  constexpr std::int64_t kDefaultFullLayers = 28;
  const bool is_used = settings.flag("use_sliding_window", false);
  const std::int64_t window = is_used ? read_window(settings) : 0;
  settings.find("sliding_window");  // means nothing where it is not used
  const Json* full = settings.find("max_window_layers");
  const std::int64_t num_full = full == nullptr ? kDefaultFullLayers : integer(*full).value_or(-1);
  if (num_full < 0) {
    settings.refuse("max_window_layers", "an integer >= 0");
  }
  config.windows = read_windows(settings, config.num_layers, window,
                                "without sliding_attention unless use_sliding_window is true",
                                [&](std::int64_t layer) { return layer >= num_full; });
}

// Which matrices have a bias, and which layers a window.
void read_form(Settings& settings, std::string_view type, C& config) {
  const bool is_llama = type == "llama";
  const bool is_mistral = type == "mistral";
  if (is_mistral) {
    if (const std::int64_t window = read_window(settings)) {
      config.windows.assign(static_cast<std::size_t>(config.num_layers), window);
    }
    settings.only("attention_bias", false);
  } else if (!is_llama) {
    read_qwen_windows(settings, config);
  }
  if (is_llama || type == "qwen3") {
    config.has_qkv_bias = config.has_out_bias = settings.flag("attention_bias", false);
  }
  if (is_llama) {
    config.has_ffn_bias = settings.flag("mlp_bias", false);
  } else {
    settings.only("mlp_bias", false);
  }
  if (type == "qwen2") {
    config.has_qkv_bias = true;
    settings.only("attention_bias", true);
  }
  settings.only(is_llama || is_mistral ? "use_sliding_window" : "use_mrope", false);
  config.has_qk_norm = type == "qwen3";
}

void read(Settings& settings, const ModelType& type, C& config) {
  read_grouped_sizes(settings, type, config);
  read_rope(settings, {}, config);
  config.norm_eps = settings.number("rms_norm_eps", 1e-6, 0.0);
  config.activation = read_hf_activation(settings, "hidden_act", "silu");
  config.init_std = settings.number("initializer_range", 0.02, 0.0);
  read_form(settings, type.name, config);
  settings.only("pretraining_tp", 1);
  settings.only("rope_interleaved", false);  // of files that other programs share
}

constexpr ModelType kTypes[] = {
    {"llama", "LlamaForCausalLM", Family::kLlama, read, 32000, 4096, 11008, 32, 32, 0, 0, 2048},
    {"mistral", "MistralForCausalLM", Family::kLlama, read, 32000, 4096, 14336, 32, 32, 8, 0,
     131072},
    {"qwen2", "Qwen2ForCausalLM", Family::kLlama, read, 151936, 4096, 22016, 32, 32, 32, 0, 32768},
    {"qwen3", "Qwen3ForCausalLM", Family::kLlama, read, 151936, 4096, 22016, 32, 32, 32, 128,
     32768},
};

}  // namespace

const NameTable kLlamaNames = {
    kRows,
    {},
    fits,
    "has_fused_qkv must be false for the names of Llama, which have no learned positions, no "
    "projected embeddings and no norms after the sum"};

std::span<const ModelType> llama_types() { return kTypes; }

}  // namespace paperlab::nn
