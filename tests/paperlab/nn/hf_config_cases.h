#pragma once
// Configurations of small models, for tests.

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "paperlab/core/error.h"
#include "paperlab/nn/hf_config.h"
#include "tests/experiments/scratch.h"

namespace paperlab::nn {

// What transformers 5 writes for a small model of each type.
inline Json llama() {
  return Json::parse(R"({"architectures": ["LlamaForCausalLM"], "attention_bias": false,
    "attention_dropout": 0.0, "bos_token_id": 1, "dtype": "float32", "eos_token_id": 2,
    "head_dim": 6, "hidden_act": "silu", "hidden_size": 16, "initializer_range": 0.03,
    "intermediate_size": 24, "max_position_embeddings": 64, "mlp_bias": false,
    "model_type": "llama", "num_attention_heads": 4, "num_hidden_layers": 3,
    "num_key_value_heads": 2, "pad_token_id": null, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
    "rope_parameters": {"rope_theta": 5000.0, "rope_type": "default"},
    "tie_word_embeddings": true, "transformers_version": "5.23.0", "use_cache": true,
    "vocab_size": 32})");
}

inline Json qwen2() {
  Json config = llama();
  config.merge_patch(Json::parse(R"({"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2",
    "attention_bias": null, "mlp_bias": null, "pretraining_tp": null, "head_dim": null,
    "layer_types": ["full_attention", "full_attention", "full_attention"],
    "max_window_layers": 2, "use_sliding_window": false})"));
  config["sliding_window"] = nullptr;
  return config;
}

inline Json gpt_neox() {
  return Json::parse(R"({"architectures": ["GPTNeoXForCausalLM"], "attention_bias": true,
    "attention_dropout": 0.0, "bos_token_id": 0, "classifier_dropout": 0.1, "dtype": "bfloat16",
    "eos_token_id": 2, "hidden_act": "gelu", "hidden_dropout": 0.0, "hidden_size": 32,
    "initializer_range": 0.02, "intermediate_size": 64, "is_decoder": false,
    "layer_norm_eps": 1e-05, "max_position_embeddings": 128, "model_type": "gpt_neox",
    "num_attention_heads": 4, "num_hidden_layers": 2, "pad_token_id": null,
    "rope_parameters": {"partial_rotary_factor": 0.25, "rope_theta": 10000.0,
                        "rope_type": "default"},
    "tie_word_embeddings": false, "transformers_version": "5.23.0", "use_cache": true,
    "use_parallel_residual": true, "vocab_size": 40})");
}

inline Json with(Json config, const char* patch) {
  config.merge_patch(Json::parse(patch));  // a null removes the key
  return config;
}

inline DecoderConfig read(const Json& config) {
  return read_hf_config("dir/config.json", config).config;
}

inline void expect_refused(const Json& config, const std::string& part) {
  PAPERLAB_EXPECT_THROW(read(config), ValueError, part);
  PAPERLAB_EXPECT_THROW(read(config), ValueError, "dir/config.json: ");
}

// The setting with each value is refused under its name.
inline void expect_refused(const Json& config, const std::string& key, const std::string& required,
                           const std::vector<Json>& values) {
  const std::string message = "setting '" + key + "' must be " + required;
  for (const Json& value : values) {
    Json changed = config;
    changed[key] = value;
    expect_refused(changed, message);
  }
}

}  // namespace paperlab::nn
