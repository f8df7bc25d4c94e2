// GPT-2, OPT and Gemma: what config.json says, and the names of the tensors.
#include <gtest/gtest.h>

#include <cmath>
#include <optional>
#include <string>
#include <vector>

#include "paperlab/nn/parameters.h"
#include "tests/paperlab/nn/hf_config_cases.h"

namespace paperlab::nn {
namespace {

using Sizes = std::vector<std::int64_t>;
using Lines = std::vector<std::string>;

Sizes sizes(const DecoderConfig& c) {
  return {c.vocab_size, c.d_model,      c.d_ff,     c.num_layers,
          c.num_heads,  c.num_kv_heads, c.head_dim, c.max_positions};
}

Json gpt2() {
  return Json::parse(R"({"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_embd": 12,
    "n_head": 2, "n_layer": 2, "n_positions": 16, "n_ctx": 16, "vocab_size": 20,
    "summary_type": "cls_index", "resid_pdrop": 0.1, "reorder_and_upcast_attn": true})");
}

// As facebook/opt-350m, smaller.
Json opt() {
  return Json::parse(R"({"architectures": ["OPTForCausalLM"], "model_type": "opt",
    "_remove_final_layer_norm": false, "activation_dropout": 0.0, "activation_function": "relu",
    "do_layer_norm_before": false, "dropout": 0.1, "ffn_dim": 20, "hidden_size": 12,
    "init_std": 0.05, "layerdrop": 0.0, "max_position_embeddings": 16, "num_attention_heads": 2,
    "num_hidden_layers": 2, "prefix": "</s>", "vocab_size": 20, "word_embed_proj_dim": 6})");
}

Json gemma(const char* type) {
  Json config = Json::parse(R"({"head_dim": 6, "hidden_size": 9, "intermediate_size": 24,
    "num_attention_heads": 4, "num_hidden_layers": 4, "num_key_value_heads": 2, "vocab_size": 20,
    "max_position_embeddings": 64, "query_pre_attn_scalar": 24, "attn_logit_softcapping": null,
    "cache_implementation": "hybrid", "eos_token_id": [1, 17]})");
  config["model_type"] = type;
  config["attn_logit_softcapping"] = nullptr;  // a patch would remove it
  return config;
}

// The lines of the parameters outside the blocks and of the last block.
Lines lines(const Json& json) {
  const HfModel model = read_hf_config("config.json", json);
  Lines lines;
  for (const ParameterSpec& spec : parameter_specs(model.config, model.family)) {
    if (spec.layer < 0 || spec.layer == model.config.num_layers - 1) {
      std::string line = spec.name;
      for (const std::int64_t size : spec.shape) {
        line += ' ' + std::to_string(size);
      }
      lines.push_back(line + (spec.is_transposed ? " t" : ""));
    }
  }
  return lines;
}

TEST(FamiliesTest, Gpt2IsRead) {
  const HfModel model = read_hf_config("config.json", gpt2());
  EXPECT_EQ(model.family, Family::kGpt2);
  EXPECT_EQ(model.architecture, "GPT2LMHeadModel");
  const DecoderConfig& c = model.config;
  EXPECT_EQ(sizes(c), (Sizes{20, 12, 48, 2, 2, 2, 6, 16}));
  EXPECT_EQ(c.norm, Norm::kLayer);
  EXPECT_EQ(c.norm_eps, 1e-5);
  EXPECT_EQ(c.activation, Activation::kGeluTanh);
  EXPECT_EQ(c.qkv_order, QkvOrder::kPartsFirst);
  EXPECT_TRUE(c.has_fused_qkv && c.has_qkv_bias && c.has_out_bias && c.has_ffn_bias);
  EXPECT_TRUE(c.has_learned_positions && c.has_tied_head && c.has_final_norm);
  EXPECT_FALSE(c.has_gate || c.is_parallel || c.is_norm_after || has_projections(c));
  EXPECT_EQ(c.rope.rotary_dim, 0);
  EXPECT_EQ(c.position_offset, 0);
  EXPECT_TRUE(c.attention_scales.empty());
  EXPECT_EQ(c.eos_token_ids, Sizes{50256});  // the type's, where the file says nothing
  EXPECT_EQ(c.pad_token_id, std::nullopt);
  EXPECT_EQ(sizes(read({{"model_type", "gpt2"}})), (Sizes{50257, 768, 3072, 12, 12, 12, 64, 1024}));
}

TEST(FamiliesTest, Gpt2HasItsOptions) {
  Json config = gpt2();
  config["eos_token_id"] = nullptr;
  config["n_inner"] = nullptr;
  EXPECT_TRUE(read(config).eos_token_ids.empty());
  EXPECT_EQ(read(config).d_ff, 48);
  EXPECT_EQ(read(with(gpt2(), R"({"n_inner": 30})")).d_ff, 30);
  EXPECT_FALSE(read(with(gpt2(), R"({"tie_word_embeddings": false})")).has_tied_head);
  const double root = std::sqrt(6.0);
  using Scales = std::vector<double>;
  EXPECT_EQ(read(with(gpt2(), R"({"scale_attn_weights": false})")).attention_scales,
            (Scales{root, root}));
  EXPECT_EQ(read(with(gpt2(), R"({"scale_attn_by_inverse_layer_idx": true})")).attention_scales,
            (Scales{1.0, 0.5}));
  expect_refused(gpt2(), "add_cross_attention", "false or null", {true});
  expect_refused(gpt2(), "activation_function", "one of silu", {"gelu_10", ""});
  expect_refused(gpt2(), "scale_attn_weights", "true or false", {1, nullptr});
  expect_refused(gpt2(), "n_head", "an integer from 1 to", {0, "2"});
  expect_refused(gpt2(), "n_inner", "an integer from 1 to", {0, "2"});
  expect_refused(gpt2(), "architectures", "[\"GPT2LMHeadModel\"]", {{"GPT2DoubleHeadsModel"}});
  expect_refused(with(gpt2(), R"({"n_embd": 13})"), "'n_embd' must be a multiple of n_head (2)");
  expect_refused(with(gpt2(), R"({"hidden_size": 12})"), "'hidden_size' (12) is not known");
  expect_refused(with(gpt2(), R"({"n_positions": 2147483647, "n_embd": 2147483646})"),
                 "at most 1e13 parameters");
}

TEST(FamiliesTest, Gpt2HasTheNamesOfTransformers) {
  const Lines expected = {"transformer.wte.weight 20 12",
                          "transformer.wpe.weight 16 12",
                          "transformer.h.1.ln_1.weight 12",
                          "transformer.h.1.ln_1.bias 12",
                          "transformer.h.1.attn.c_attn.weight 12 36 t",
                          "transformer.h.1.attn.c_attn.bias 36",
                          "transformer.h.1.attn.c_proj.weight 12 12 t",
                          "transformer.h.1.attn.c_proj.bias 12",
                          "transformer.h.1.ln_2.weight 12",
                          "transformer.h.1.ln_2.bias 12",
                          "transformer.h.1.mlp.c_fc.weight 12 48 t",
                          "transformer.h.1.mlp.c_fc.bias 48",
                          "transformer.h.1.mlp.c_proj.weight 48 12 t",
                          "transformer.h.1.mlp.c_proj.bias 12",
                          "transformer.ln_f.weight 12",
                          "transformer.ln_f.bias 12"};
  EXPECT_EQ(lines(gpt2()), expected);
  const Json untied = with(gpt2(), R"({"tie_word_embeddings": false})");
  EXPECT_EQ(lines(untied).back(), "lm_head.weight 20 12");
  const auto specs = parameter_specs(read(untied), Family::kGpt2);
  EXPECT_EQ(specs[2].other_name, "h.0.ln_1.weight");
  EXPECT_EQ(specs.back().other_name, "");
  EXPECT_EQ(head_names(Family::kGpt2), Lines{"lm_head.weight"});
  PAPERLAB_EXPECT_THROW(parameter_specs(read(gpt2()), Family::kGptNeoX), ValueError, "by heads");
  PAPERLAB_EXPECT_THROW(parameter_specs(read(gpt_neox()), Family::kGpt2), ValueError, "by parts");
}

TEST(FamiliesTest, OptIsRead) {
  const HfModel model = read_hf_config("config.json", opt());
  EXPECT_EQ(model.family, Family::kOpt);
  const DecoderConfig& c = model.config;
  EXPECT_EQ(sizes(c), (Sizes{20, 12, 20, 2, 2, 2, 6, 16}));
  EXPECT_EQ(c.norm, Norm::kLayer);
  EXPECT_EQ(c.norm_eps, 1e-5);
  EXPECT_EQ(c.activation, Activation::kRelu);
  EXPECT_EQ(c.embed_dim, 6);
  EXPECT_EQ(c.position_offset, 2);
  EXPECT_EQ(c.init_std, 0.05);
  EXPECT_TRUE(c.has_learned_positions && c.is_norm_after && c.has_norm_weights && c.has_tied_head);
  EXPECT_TRUE(c.has_qkv_bias && c.has_out_bias && c.has_ffn_bias && has_projections(c));
  EXPECT_FALSE(c.has_final_norm || c.has_fused_qkv || c.has_gate);
  EXPECT_EQ(c.eos_token_ids, Sizes{2});
  EXPECT_EQ(c.pad_token_id, 1);
  EXPECT_EQ(sizes(read({{"model_type", "opt"}})), (Sizes{50272, 768, 3072, 12, 12, 12, 64, 2048}));
  EXPECT_FALSE(has_projections(read({{"model_type", "opt"}})));
  EXPECT_TRUE(read({{"model_type", "opt"}}).has_final_norm);
}

TEST(FamiliesTest, OptHasItsOptions) {
  const Json before = with(opt(), R"({"do_layer_norm_before": true, "word_embed_proj_dim": 12})");
  EXPECT_TRUE(read(before).has_final_norm);
  EXPECT_FALSE(read(before).is_norm_after || has_projections(read(before)));
  EXPECT_FALSE(read(with(before, R"({"_remove_final_layer_norm": true})")).has_final_norm);
  const DecoderConfig plain =
      read(with(before, R"({"enable_bias": false, "layer_norm_elementwise_affine": false})"));
  EXPECT_FALSE(plain.has_qkv_bias || plain.has_out_bias || plain.has_ffn_bias);
  EXPECT_FALSE(plain.has_norm_weights);
  EXPECT_EQ(parameter_specs(plain, Family::kOpt).size(), 2U + 2U * 6U);
  expect_refused(opt(), "word_embed_proj_dim", "at most hidden_size", {13});
  expect_refused(opt(), "do_layer_norm_before", "true or false", {0, nullptr});
  expect_refused(opt(), "enable_bias", "true or false", {"no"});
  expect_refused(with(opt(), R"({"num_key_value_heads": 1})"), "'num_key_value_heads' (1) is not");
}

TEST(FamiliesTest, OptHasTheNamesOfTransformers) {
  const Lines after = {"model.decoder.embed_tokens.weight 20 6",
                       "model.decoder.embed_positions.weight 18 12",
                       "model.decoder.project_out.weight 6 12",
                       "model.decoder.project_in.weight 12 6",
                       "model.decoder.layers.1.self_attn.k_proj.weight 12 12",
                       "model.decoder.layers.1.self_attn.k_proj.bias 12",
                       "model.decoder.layers.1.self_attn.v_proj.weight 12 12",
                       "model.decoder.layers.1.self_attn.v_proj.bias 12",
                       "model.decoder.layers.1.self_attn.q_proj.weight 12 12",
                       "model.decoder.layers.1.self_attn.q_proj.bias 12",
                       "model.decoder.layers.1.self_attn.out_proj.weight 12 12",
                       "model.decoder.layers.1.self_attn.out_proj.bias 12",
                       "model.decoder.layers.1.self_attn_layer_norm.weight 12",
                       "model.decoder.layers.1.self_attn_layer_norm.bias 12",
                       "model.decoder.layers.1.fc1.weight 20 12",
                       "model.decoder.layers.1.fc1.bias 20",
                       "model.decoder.layers.1.fc2.weight 12 20",
                       "model.decoder.layers.1.fc2.bias 12",
                       "model.decoder.layers.1.final_layer_norm.weight 12",
                       "model.decoder.layers.1.final_layer_norm.bias 12"};
  EXPECT_EQ(lines(opt()), after);
  const Json before =
      with(opt(), R"({"do_layer_norm_before": true, "tie_word_embeddings": false})");
  const Lines names = lines(before);
  EXPECT_EQ(names[4], "model.decoder.final_layer_norm.weight 12");
  EXPECT_EQ(names[5], "model.decoder.final_layer_norm.bias 12");
  EXPECT_EQ(names.back(), "lm_head.weight 20 6");
  EXPECT_EQ(parameter_specs(read(before), Family::kOpt)[0].other_name,
            "decoder.embed_tokens.weight");
}

TEST(FamiliesTest, GemmaIsRead) {
  Json config = gemma("gemma");
  expect_refused(config, "'query_pre_attn_scalar' (24) is not known");
  config.erase("query_pre_attn_scalar");
  const HfModel model = read_hf_config("config.json", config);
  EXPECT_EQ(model.family, Family::kLlama);
  const DecoderConfig& c = model.config;
  EXPECT_EQ(sizes(c), (Sizes{20, 9, 24, 4, 4, 2, 6, 64}));
  EXPECT_EQ(c.activation, Activation::kGeluTanh);
  EXPECT_EQ(c.embed_scale, 3.0);
  EXPECT_EQ(c.norm_eps, 1e-6);
  EXPECT_TRUE(c.has_gate && c.has_norm_offset && c.has_tied_head);
  EXPECT_FALSE(c.has_post_norms || c.has_qk_norm || c.has_qkv_bias);
  EXPECT_EQ(c.rope.rotary_dim, 6);
  EXPECT_TRUE(c.windows.empty() && c.attention_scales.empty());
  EXPECT_EQ(c.eos_token_ids, (Sizes{1, 17}));
  EXPECT_EQ(c.pad_token_id, 0);
  EXPECT_EQ(sizes(read({{"model_type", "gemma"}})),
            (Sizes{256000, 3072, 24576, 28, 16, 16, 256, 8192}));
  EXPECT_TRUE(read(with(config, R"({"attention_bias": true})")).has_out_bias);
  for (const char* name : {"gelu", "gelu_pytorch_tanh"}) {
    config["hidden_act"] = name;
    EXPECT_EQ(read(config).activation, Activation::kGeluTanh);
    EXPECT_EQ(read(with(config, R"({"hidden_activation": "gelu_pytorch_tanh"})")).activation,
              Activation::kGeluTanh);
  }
  expect_refused(config, "hidden_activation", "absent, null or as hidden_act", {"gelu", "silu"});
  expect_refused(config, "use_bidirectional_attention", "false or null", {true});
}

TEST(FamiliesTest, Gemma2IsRead) {
  const DecoderConfig c = read(gemma("gemma2"));
  EXPECT_TRUE(c.has_post_norms && c.has_norm_offset);
  EXPECT_FALSE(c.has_qk_norm || c.window_rope.has_value());
  EXPECT_EQ(c.windows, (Sizes{4096, 0, 4096, 0}));
  EXPECT_EQ(c.attention_scales, std::vector<double>(4, 0.5));
  EXPECT_EQ(c.logit_softcap, 30.0);
  Json config = gemma("gemma2");
  config["final_logit_softcapping"] = nullptr;
  EXPECT_EQ(read(config).logit_softcap, 0.0);
  expect_refused(config, "attn_logit_softcapping", "null: logits of attention", {50.0, 0});
  config.erase("attn_logit_softcapping");  // 50 by default
  expect_refused(config, "'attn_logit_softcapping' must be null");
  config = gemma("gemma2");
  config["sliding_window"] = nullptr;
  expect_refused(config, "'sliding_window' must be an integer from 1 on");
  config["layer_types"] = Lines(4, "full_attention");
  EXPECT_TRUE(read(config).windows.empty());
  config["layer_types"][1] = "sliding_attention";
  expect_refused(config, "'layer_types' must be without sliding_attention");
  config["sliding_window"] = 5;
  EXPECT_EQ(read(config).windows, (Sizes{0, 5, 0, 0}));
  expect_refused(config, "query_pre_attn_scalar", "a finite number > 0", {0, -1, "256"});
  const Lines names = lines(gemma("gemma2"));
  const Lines last(names.end() - 5, names.end());
  EXPECT_EQ(last,
            (Lines{"model.layers.3.input_layernorm.weight 9",
                   "model.layers.3.post_attention_layernorm.weight 9",
                   "model.layers.3.pre_feedforward_layernorm.weight 9",
                   "model.layers.3.post_feedforward_layernorm.weight 9", "model.norm.weight 9"}));
}

TEST(FamiliesTest, Gemma3HasARopeForEachTypeOfLayer) {
  const DecoderConfig absent = read(gemma("gemma3_text"));
  EXPECT_EQ(absent.rope.base, 1e6);
  EXPECT_EQ(absent.window_rope.value_or(RopeConfig{}).base, 1e4);
  EXPECT_EQ(absent.windows, Sizes(4, 4096));
  EXPECT_TRUE(absent.has_qk_norm && absent.has_post_norms);
  EXPECT_EQ(absent.logit_softcap, 0.0);
  const DecoderConfig old_form = read(with(gemma("gemma3_text"), R"({"rope_theta": 5e5,
      "rope_local_base_freq": 500, "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
      "sliding_window": 3, "sliding_window_pattern": 2})"));
  const DecoderConfig new_form = read(with(gemma("gemma3_text"), R"({"sliding_window": 3,
      "_sliding_window_pattern": 6, "rope_parameters": {
        "full_attention": {"rope_theta": 5e5, "factor": 8.0, "rope_type": "linear"},
        "sliding_attention": {"rope_theta": 500, "rope_type": "default"}},
      "layer_types": ["sliding_attention", "full_attention", "sliding_attention",
                      "full_attention"]})"));
  for (const DecoderConfig& c : {old_form, new_form}) {
    EXPECT_TRUE(c.window_rope.has_value());
    EXPECT_EQ(c.windows, (Sizes{3, 0, 3, 0}));
    EXPECT_EQ(c.rope.base, 5e5);
    EXPECT_EQ(c.rope.scaling, RopeScaling::kLinear);
    EXPECT_EQ(c.rope.factor, 8.0);
    EXPECT_EQ(c.window_rope.value_or(RopeConfig{}).base, 500.0);
    EXPECT_EQ(c.window_rope.value_or(RopeConfig{}).scaling, RopeScaling::kNone);
  }
  expect_refused(gemma("gemma3_text"), "rope_parameters", "an object of objects full_attention",
                 {{{"rope_theta", 7}}, {{"full_attention", 3}}});
  expect_refused(with(gemma("gemma3_text"),
                      R"({"rope_parameters": {"sliding_attention": {"rope_type": "longrope"}}})"),
                 "'rope_parameters.sliding_attention.rope_type' must be one of default");
}

TEST(FamiliesTest, PublishedQwenSettingsAreRead) {
  const DecoderConfig small = read(Json::parse(R"({"architectures": ["Qwen2ForCausalLM"],
    "attention_dropout": 0.0, "bos_token_id": 151643, "eos_token_id": 151643, "hidden_act": "silu",
    "hidden_size": 896, "initializer_range": 0.02, "intermediate_size": 4864,
    "max_position_embeddings": 32768, "max_window_layers": 24, "model_type": "qwen2",
    "num_attention_heads": 14, "num_hidden_layers": 24, "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "sliding_window": 32768,
    "tie_word_embeddings": true, "torch_dtype": "bfloat16", "transformers_version": "4.40.1",
    "use_cache": true, "use_mrope": false, "use_sliding_window": false, "vocab_size": 151936})"));
  EXPECT_EQ(sizes(small), (Sizes{151936, 896, 4864, 24, 14, 2, 64, 32768}));
  EXPECT_TRUE(small.has_qkv_bias && small.has_tied_head && small.windows.empty());
  EXPECT_FALSE(small.has_out_bias || small.has_qk_norm);
  EXPECT_EQ(small.rope.base, 1e6);
  Json config = Json::parse(R"({"architectures": ["Qwen3ForCausalLM"], "attention_bias": false,
    "attention_dropout": 0.0, "bos_token_id": 151643, "eos_token_id": 151645, "head_dim": 128,
    "hidden_act": "silu", "hidden_size": 1024, "initializer_range": 0.02,
    "intermediate_size": 3072, "max_position_embeddings": 40960, "max_window_layers": 28,
    "model_type": "qwen3", "num_attention_heads": 16, "num_hidden_layers": 28,
    "num_key_value_heads": 8, "rms_norm_eps": 1e-06, "rope_scaling": null, "rope_theta": 1000000,
    "sliding_window": null, "tie_word_embeddings": true, "use_sliding_window": false,
    "vocab_size": 151936})");
  EXPECT_EQ(sizes(read(config)), (Sizes{151936, 1024, 3072, 28, 16, 8, 128, 40960}));
  EXPECT_TRUE(read(config).has_qk_norm && read(config).windows.empty());
  config["use_sliding_window"] = true;
  config["sliding_window"] = 16;
  config["max_window_layers"] = 27;
  EXPECT_EQ(read(config).windows.front(), 0);
  EXPECT_EQ(read(config).windows.back(), 16);
}

}  // namespace
}  // namespace paperlab::nn
