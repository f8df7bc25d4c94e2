#include "paperlab/nn/hf_config.h"

#include <array>
#include <span>
#include <string>
#include <utility>

#include "paperlab/core/error.h"
#include "paperlab/nn/families/family_internal.h"

namespace paperlab::nn {
namespace {

const ModelType& read_type(Settings& settings) {
  std::string names;
  const Json* value = settings.find("model_type");
  for (const auto& types :
       {llama_types(), gpt_neox_types(), gpt2_types(), opt_types(), gemma_types()}) {
    for (const ModelType& type : types) {
      if (value != nullptr && *value == type.name) {
        return type;
      }
      names += (names.empty() ? "" : ", ") + std::string(type.name);
    }
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

// Those of the type where config.json says nothing.
void default_token_ids(Settings& settings, const ModelType& type, DecoderConfig& config) {
  if (type.eos_token_id >= 0 && settings.find("eos_token_id") == nullptr) {
    config.eos_token_ids = {type.eos_token_id};
  }
  if (type.pad_token_id >= 0 && settings.find("pad_token_id") == nullptr) {
    config.pad_token_id = type.pad_token_id;
  }
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
    // Of another attention over the same weights, which is put in place afterwards.
    "cca_group_size cca_window cca_pooling cca_weights_per cca_keep_first",
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

// Two published approximations of GELU have the same formula, x tanh, under several names.
Activation read_hf_activation(Settings& settings, const char* key, const char* absent) {
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
                                 Named{"relu", Activation::kRelu},
                                 Named{"tanh", Activation::kTanh}};
  const std::string name = settings.text(key, absent);
  std::string names;
  for (const Named& known : kNames) {
    if (name == known.name) {
      return known.activation;
    }
    names += (names.empty() ? "" : ", ") + std::string(known.name);
  }
  settings.refuse(key, "one of " + names);
}

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
  type.read(settings, type, model.config);
  model.config.has_tied_head = settings.flag("tie_word_embeddings", type.has_tied_head);
  model.dtype = read_hf_dtype(settings);
  read_token_ids(settings, model.config);
  default_token_ids(settings, type, model.config);
  allow_hf_harmless(settings);
  settings.refuse_others("the model type '" + model.model_type + "'");
  if (generation_config != nullptr) {
    Settings generation(generation_source(source), *generation_config);
    read_token_ids(generation, model.config);
  }
  return model;
}

}  // namespace paperlab::nn
