// Gemma, and what Gemma 2 and Gemma 3 (text) add to it; the names are Llama's.
// Sources: arXiv:2403.08295; arXiv:2408.00118; arXiv:2503.19786.
#include <cmath>
#include <string>
#include <string_view>

#include "paperlab/nn/families/family_internal.h"

namespace paperlab::nn {
namespace {

using C = DecoderConfig;

constexpr char kTanhGelu[] = "gelu_pytorch_tanh";

// Files have two keys; the second says the same or nothing. The first Gemma's `gelu` is meant as
// the form by tanh.
void read_activation(Settings& settings, bool is_first, C& config) {
  const char* key = is_first ? "hidden_act" : "hidden_activation";
  const char* other = is_first ? "hidden_activation" : "hidden_act";
  config.activation = read_hf_activation(settings, key, kTanhGelu);
  if (is_first && settings.text(key, kTanhGelu) == "gelu") {
    config.activation = Activation::kGeluTanh;
  }
  if (settings.find_value(other) != nullptr &&
      read_hf_activation(settings, other, kTanhGelu) != config.activation) {
    settings.refuse(other, std::string("absent, null or as ") + key);
  }
}

void read_first(Settings& settings, const ModelType& type, C& config) {
  read_grouped_sizes(settings, type, config);
  config.norm_eps = settings.number("rms_norm_eps", 1e-6, 0.0);
  config.has_norm_offset = true;
  config.embed_scale = std::sqrt(static_cast<double>(config.d_model));
  config.init_std = settings.number("initializer_range", 0.02, 0.0);
  config.has_qkv_bias = config.has_out_bias = settings.flag("attention_bias", false);
  settings.only("use_bidirectional_attention", false);
  settings.allow("cache_implementation");
}

void read_gemma(Settings& settings, const ModelType& type, C& config) {
  read_first(settings, type, config);
  read_rope(settings, {}, config);
  read_activation(settings, true, config);
}

// Each `period`-th layer sees all keys, the others a window.
void read_alternating_windows(Settings& settings, std::int64_t period, C& config) {
  const std::int64_t window = read_window(settings);
  if (window == 0 && settings.find_value("layer_types") == nullptr) {
    settings.refuse("sliding_window", "an integer from 1 on where layer_types is absent");
  }
  config.windows = read_windows(settings, config.num_layers, window,
                                "without sliding_attention where sliding_window is null",
                                [&](std::int64_t layer) { return (layer + 1) % period != 0; });
}

void read_caps(Settings& settings, bool is_second, C& config) {
  const char* attention = "attn_logit_softcapping";
  const bool is_capped = is_second && settings.find(attention) == nullptr;  // by default
  if (is_capped || settings.find_value(attention) != nullptr) {
    settings.refuse(attention, "null: logits of attention are not capped");
  }
  const char* final = "final_logit_softcapping";
  const bool is_absent = settings.find(final) == nullptr;
  const double absent = is_second ? 30.0 : 0.0;
  config.logit_softcap =
      is_absent ? absent : settings.optional_number(final, kPositive).value_or(0.0);
}

void read_later(Settings& settings, const ModelType& type, C& config) {
  read_first(settings, type, config);
  read_activation(settings, false, config);
  config.has_post_norms = true;
  const double scalar = settings.number("query_pre_attn_scalar", 256.0, kPositive);
  const double scale = std::sqrt(static_cast<double>(config.head_dim) / scalar);
  if (scale != 1.0) {
    config.attention_scales.assign(static_cast<std::size_t>(config.num_layers), scale);
  }
}

void read_gemma2(Settings& settings, const ModelType& type, C& config) {
  read_later(settings, type, config);
  read_rope(settings, {}, config);
  settings.only("sliding_window_pattern", 2);
  read_alternating_windows(settings, 2, config);
  read_caps(settings, true, config);
}

void read_gemma3(Settings& settings, const ModelType& type, C& config) {
  constexpr std::int64_t kPeriod = 6;
  read_later(settings, type, config);
  config.has_qk_norm = true;
  RopeForm local;
  local.base_key = "rope_local_base_freq";
  local.section = "sliding_attention";
  local.has_scaling_key = false;
  config.window_rope = read_hf_rope(settings, local, config.head_dim, config.max_positions);
  RopeForm global;
  global.base = 1e6;
  global.section = "full_attention";
  read_rope(settings, global, config);
  const std::int64_t period = settings.optional_size("sliding_window_pattern").value_or(kPeriod);
  settings.allow("_sliding_window_pattern");  // written beside layer_types
  read_alternating_windows(settings, period, config);
  read_caps(settings, false, config);
}

constexpr ModelType kTypes[] = {
    {"gemma", "GemmaForCausalLM", Family::kLlama, read_gemma, 256000, 3072, 24576, 28, 16, 16, 256,
     8192, true, 1, 0},
    {"gemma2", "Gemma2ForCausalLM", Family::kLlama, read_gemma2, 256000, 2304, 9216, 26, 8, 4, 256,
     8192, true, 1, 0},
    {"gemma3_text", "Gemma3ForCausalLM", Family::kLlama, read_gemma3, 262208, 2304, 9216, 26, 8, 4,
     256, 131072, true, 1, 0},
};

}  // namespace

std::span<const ModelType> gemma_types() { return kTypes; }

}  // namespace paperlab::nn
