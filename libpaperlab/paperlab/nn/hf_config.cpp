#include "paperlab/nn/hf_config.h"

#include <algorithm>
#include <array>
#include <utility>

#include "paperlab/core/error.h"
#include "paperlab/nn/hf_settings.h"

namespace paperlab::nn {
namespace {

constexpr std::int64_t kMaxLayers = 10'000;
// Above any model; their bytes fit into the addresses of a process, and sums of sizes into 64 bits.
constexpr double kMaxParameters = 1e13;

// The defaults of transformers' configuration classes.
struct ModelType {
  const char* name;
  const char* architecture;
  Family family;
  std::int64_t vocab_size;
  std::int64_t hidden_size;
  std::int64_t intermediate_size;
  std::int64_t num_layers;
  std::int64_t num_heads;
  std::int64_t num_kv_heads;  // 0: as many as heads
  std::int64_t head_dim;      // 0: hidden_size / heads
  std::int64_t max_position_embeddings;
};

constexpr std::array kTypes = {
    ModelType{"llama", "LlamaForCausalLM", Family::kLlama, 32000, 4096, 11008, 32, 32, 0, 0, 2048},
    ModelType{"mistral", "MistralForCausalLM", Family::kLlama, 32000, 4096, 14336, 32, 32, 8, 0,
              131072},
    ModelType{"qwen2", "Qwen2ForCausalLM", Family::kLlama, 151936, 4096, 22016, 32, 32, 32, 0,
              32768},
    ModelType{"qwen3", "Qwen3ForCausalLM", Family::kLlama, 151936, 4096, 22016, 32, 32, 32, 128,
              32768},
    ModelType{"gpt_neox", "GPTNeoXForCausalLM", Family::kGptNeoX, 50432, 6144, 24576, 44, 64, 0, 0,
              2048},
};
constexpr std::int64_t kDefaultWindow = 4096;    // mistral and qwen
constexpr std::int64_t kDefaultFullLayers = 28;  // qwen: max_window_layers

const ModelType& read_type(Settings& settings) {
  std::string names;
  const Json* value = settings.find("model_type");
  for (const ModelType& type : kTypes) {
    if (value != nullptr && *value == type.name) {
      return type;
    }
    names += (names.empty() ? "" : ", ") + std::string(type.name);
  }
  settings.refuse("model_type", "one of " + names);
}

void check_architecture(Settings& settings, const ModelType& type) {
  const Json* value = settings.find_value("architectures");
  if (value == nullptr || (value->is_array() && value->empty())) {
    return;
  }
  if (!value->is_array() || value->front() != type.architecture) {
    settings.refuse("architectures", std::string("[\"") + type.architecture +
                                         "\"] for the model type '" + type.name + "'");
  }
}

// Two published approximations of GELU have the same formula, x tanh, under several names.
Activation read_activation(Settings& settings, const char* absent) {
  struct Named {
    const char* name;
    Activation activation;
  };
  constexpr std::array kNames = {Named{"silu", Activation::kSilu},
                                 Named{"swish", Activation::kSilu},
                                 Named{"gelu", Activation::kGelu},
                                 Named{"gelu_python", Activation::kGelu},
                                 Named{"gelu_new", Activation::kGeluTanh},
                                 Named{"gelu_fast", Activation::kGeluTanh},
                                 Named{"gelu_accurate", Activation::kGeluTanh},
                                 Named{"gelu_pytorch_tanh", Activation::kGeluTanh},
                                 Named{"gelu_python_tanh", Activation::kGeluTanh},
                                 Named{"relu", Activation::kRelu}};
  const std::string name = settings.text("hidden_act", absent);
  std::string names;
  for (const Named& known : kNames) {
    if (name == known.name) {
      return known.activation;
    }
    names += (names.empty() ? "" : ", ") + std::string(known.name);
  }
  settings.refuse("hidden_act", "one of " + names);
}

std::int64_t derived_head_dim(const Settings& settings, const DecoderConfig& config) {
  if (config.d_model % config.num_heads != 0) {
    settings.refuse("hidden_size",
                    "a multiple of num_attention_heads (" + std::to_string(config.num_heads) + ")");
  }
  return config.d_model / config.num_heads;
}

void read_sizes(Settings& settings, const ModelType& type, DecoderConfig& config) {
  config.vocab_size = settings.size("vocab_size", type.vocab_size);
  config.d_model = settings.size("hidden_size", type.hidden_size);
  config.d_ff = settings.size("intermediate_size", type.intermediate_size);
  config.num_layers = settings.size("num_hidden_layers", type.num_layers, kMaxLayers);
  config.num_heads = settings.size("num_attention_heads", type.num_heads);
  config.num_kv_heads = config.num_heads;
  if (type.family == Family::kGptNeoX) {
    config.head_dim = derived_head_dim(settings, config);
    return;
  }
  const bool is_null = settings.find("num_key_value_heads") != nullptr &&
                       settings.find_value("num_key_value_heads") == nullptr;
  if (!is_null) {
    config.num_kv_heads = settings.size("num_key_value_heads",
                                        type.num_kv_heads ? type.num_kv_heads : config.num_heads);
  }
  if (config.num_heads % config.num_kv_heads != 0) {
    const bool is_given = settings.find("num_key_value_heads") != nullptr;
    settings.refuse("num_key_value_heads", (is_given ? "a" : "given as a") +
                                               std::string(" divisor of num_attention_heads (") +
                                               std::to_string(config.num_heads) + "), unlike " +
                                               (is_given ? "" : "its default ") +
                                               std::to_string(config.num_kv_heads));
  }
  if (type.head_dim != 0) {
    config.head_dim = settings.size("head_dim", type.head_dim);
  } else {
    const std::optional<std::int64_t> head_dim = settings.optional_size("head_dim");
    config.head_dim = head_dim ? *head_dim : derived_head_dim(settings, config);
  }
}

void check_parameters(const Settings& settings, const DecoderConfig& config) {
  const auto width = static_cast<double>(config.d_model);
  const double heads = static_cast<double>(config.num_heads) * static_cast<double>(config.head_dim);
  const double block = 4.0 * heads * width + 3.0 * width * static_cast<double>(config.d_ff);
  const double total = 2.0 * width * static_cast<double>(config.vocab_size) +
                       block * static_cast<double>(config.num_layers);
  if (total > kMaxParameters) {
    settings.refuse("hidden_size", "part of a model of at most 1e13 parameters");
  }
}

// What all types have.
void read_common(Settings& settings, const ModelType& type, DecoderConfig& config) {
  read_sizes(settings, type, config);
  check_parameters(settings, config);
  const bool is_neox = type.family == Family::kGptNeoX;
  const std::int64_t positions =
      settings.size("max_position_embeddings", type.max_position_embeddings);
  config.rope = read_hf_rope(settings, is_neox, config.head_dim, positions);
  config.max_positions = stretched_positions(settings, config.rope);
  config.norm = is_neox ? Norm::kLayer : Norm::kRms;
  config.norm_eps = is_neox ? settings.number("layer_norm_eps", 1e-5, 0.0)
                            : settings.number("rms_norm_eps", 1e-6, 0.0);
  config.activation = read_activation(settings, is_neox ? "gelu" : "silu");
  config.has_tied_head = settings.flag("tie_word_embeddings", false);
  config.init_std = settings.number("initializer_range", 0.02, 0.0);
}

// The window of the layers that have one; 0: none has.
std::int64_t read_window(Settings& settings, bool is_used) {
  const Json* value = settings.find("sliding_window");
  if (!is_used) {
    return 0;
  }
  return value == nullptr ? kDefaultWindow : settings.optional_size("sliding_window").value_or(0);
}

// Layers from max_window_layers on have the window, or those that layer_types names.
std::vector<std::int64_t> read_qwen_windows(Settings& settings, std::int64_t num_layers) {
  const std::int64_t window = read_window(settings, settings.flag("use_sliding_window", false));
  const Json* full = settings.find("max_window_layers");
  const std::int64_t num_full = full == nullptr ? kDefaultFullLayers : integer(*full).value_or(-1);
  if (num_full < 0) {
    settings.refuse("max_window_layers", "an integer >= 0");
  }
  std::vector<std::int64_t> windows(static_cast<std::size_t>(num_layers), 0);
  const Json* types = settings.find_value("layer_types");
  if (types != nullptr && (!types->is_array() || types->size() != windows.size())) {
    settings.refuse("layer_types", "a list of " + std::to_string(num_layers) + " names");
  }
  for (std::size_t i = 0; i < windows.size(); ++i) {
    bool has_window = static_cast<std::int64_t>(i) >= num_full;
    if (types != nullptr) {
      has_window = (*types)[i] == "sliding_attention";
      if (!has_window && (*types)[i] != "full_attention") {
        settings.refuse("layer_types", "a list of full_attention and sliding_attention");
      }
      if (has_window && window == 0) {
        settings.refuse("layer_types",
                        "without sliding_attention unless use_sliding_window is true");
      }
    }
    windows[i] = has_window ? window : 0;
  }
  return windows;
}

void read_windows(Settings& settings, const std::string& type, DecoderConfig& config) {
  std::vector<std::int64_t> windows;
  if (type == "mistral") {
    windows.assign(static_cast<std::size_t>(config.num_layers), read_window(settings, true));
  } else if (type == "qwen2" || type == "qwen3") {
    windows = read_qwen_windows(settings, config.num_layers);
  }
  const bool has_any = std::any_of(windows.begin(), windows.end(), [](auto w) { return w > 0; });
  config.windows = has_any ? windows : std::vector<std::int64_t>();
}

void read_llama_form(Settings& settings, const std::string& type, DecoderConfig& config) {
  config.has_gate = true;
  read_windows(settings, type, config);
  if (type == "llama" || type == "qwen3") {
    config.has_qkv_bias = config.has_out_bias = settings.flag("attention_bias", false);
  } else if (type == "mistral") {
    settings.only("attention_bias", false);
  }
  if (type == "llama") {
    config.has_ffn_bias = settings.flag("mlp_bias", false);
  } else {
    settings.only("mlp_bias", false);
  }
  if (type == "qwen2") {
    config.has_qkv_bias = true;
    settings.only("attention_bias", true);
  }
  settings.only(type == "llama" || type == "mistral" ? "use_sliding_window" : "use_mrope", false);
  config.has_qk_norm = type == "qwen3";
  settings.only("pretraining_tp", 1);
  settings.only("rope_interleaved", false);  // of files that other programs share
}

void read_neox_form(Settings& settings, DecoderConfig& config) {
  config.has_gate = false;
  config.has_fused_qkv = true;
  config.has_ffn_bias = true;
  config.has_qkv_bias = config.has_out_bias = settings.flag("attention_bias", true);
  config.is_parallel = settings.flag("use_parallel_residual", true);
}

std::vector<std::int64_t> read_ids(Settings& settings, const char* key, bool is_list_allowed) {
  const Json* value = settings.find_value(key);
  if (value == nullptr) {
    return {};
  }
  const Json list = value->is_array() && is_list_allowed ? *value : Json::array({*value});
  std::vector<std::int64_t> ids;
  for (const Json& id : list) {
    const std::int64_t number = integer(id).value_or(std::int64_t{kMaxSize} + 1);
    if (number > kMaxSize) {
      settings.refuse(key, is_list_allowed ? "a token id or a list of them" : "a token id");
    }
    if (number >= 0) {  // old files write -1 for none
      ids.push_back(number);
    }
  }
  return ids;
}

// transformers' generate() takes them from generation_config.json alone where that exists.
void read_token_ids(Settings& settings, DecoderConfig& config) {
  config.eos_token_ids = read_ids(settings, "eos_token_id", true);
  const std::vector<std::int64_t> pad = read_ids(settings, "pad_token_id", false);
  config.pad_token_id = pad.empty() ? std::nullopt : std::optional(pad.front());
}

std::string generation_source(const std::string& source) {
  const std::size_t slash = source.rfind('/');
  return (slash == std::string::npos ? "" : source.substr(0, slash + 1)) + "generation_config.json";
}

// Of the program and of training, of other heads, of generation: transformers has them in any
// config.json, and no logit depends on them.
constexpr const char* kHarmless[] = {
    "transformers_version torch_dtype dtype use_cache _name_or_path name_or_path "
    "_model_name_or_path _commit_hash auto_map attn_implementation _attn_implementation "
    "_attn_implementation_autoset torchscript return_dict use_return_dict output_attentions "
    "output_hidden_states gradient_checkpointing use_bfloat16 tf_legacy_loss tokenizer_class "
    "prefix task_specific_params transformers.js_config is_llama_config max_sequence_length "
    "model_max_length is_decoder unsloth_version unsloth_fixed",
    "id2label label2id num_labels problem_type finetuning_task classifier_dropout "
    "attention_dropout hidden_dropout resid_pdrop embd_pdrop attn_pdrop residual_dropout "
    "embedding_dropout attention_probs_dropout_prob hidden_dropout_prob",
    "bos_token_id sep_token_id cls_token_id mask_token_id unk_token_id decoder_start_token_id "
    "forced_bos_token_id forced_eos_token_id bad_words_ids suppress_tokens "
    "begin_suppress_tokens max_length min_length max_new_tokens do_sample early_stopping "
    "num_beams num_beam_groups diversity_penalty temperature top_k top_p typical_p "
    "repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size "
    "num_return_sequences output_scores return_dict_in_generate remove_invalid_values "
    "exponential_decay_length_penalty"};

}  // namespace

std::optional<std::string> read_hf_dtype(Settings& settings) {
  const bool is_old = settings.find_value("dtype") == nullptr;
  const char* key = is_old ? "torch_dtype" : "dtype";
  if (settings.find_value(key) == nullptr) {
    return std::nullopt;
  }
  const std::string name = settings.text(key, "");
  return name.starts_with("torch.") ? name.substr(6) : name;
}

void allow_hf_harmless(Settings& settings) {
  for (const char* keys : kHarmless) {
    settings.allow(keys);
  }
  settings.only("is_encoder_decoder", false);
  settings.only("add_cross_attention", false);
  settings.only("tie_encoder_decoder", false);
  settings.only("chunk_size_feed_forward", 0);
  settings.only("pruned_heads", Json::object());
}

HfModel read_hf_config(const std::string& source, const Json& config,
                       const Json* generation_config) {
  Settings settings(source, config);
  const ModelType& type = read_type(settings);
  check_architecture(settings, type);
  if (settings.find_value("quantization_config") != nullptr) {
    settings.refuse("quantization_config", "absent: quantized weights are not read");
  }
  HfModel model;
  model.family = type.family;
  model.model_type = type.name;
  model.architecture = type.architecture;
  read_common(settings, type, model.config);
  if (type.family == Family::kLlama) {
    read_llama_form(settings, type.name, model.config);
  } else {
    read_neox_form(settings, model.config);
  }
  model.dtype = read_hf_dtype(settings);
  read_token_ids(settings, model.config);
  allow_hf_harmless(settings);
  settings.refuse_others("the model type '" + model.model_type + "'");
  if (generation_config != nullptr) {
    Settings generation(generation_source(source), *generation_config);
    read_token_ids(generation, model.config);
  }
  return model;
}

}  // namespace paperlab::nn
