#include "paperlab/nn/parameters.h"

#include <gtest/gtest.h>

#include <set>
#include <string>
#include <vector>

#include "paperlab/core/error.h"
#include "tests/experiments/scratch.h"

namespace paperlab::nn {
namespace {

using Shape = std::vector<std::int64_t>;

DecoderConfig llama() {
  DecoderConfig config;
  config.vocab_size = 11;
  config.num_layers = 2;
  config.d_model = 12;
  config.num_heads = 4;
  config.num_kv_heads = 2;
  config.head_dim = 5;
  config.d_ff = 7;
  return config;
}

DecoderConfig gpt_neox() {
  DecoderConfig config = llama();
  config.num_kv_heads = 4;
  config.head_dim = 3;
  config.norm = Norm::kLayer;
  config.has_gate = false;
  config.has_fused_qkv = config.has_qkv_bias = config.has_out_bias = config.has_ffn_bias = true;
  return config;
}

std::string text(const ParameterSpec& spec) {
  std::string line = spec.name;
  for (const std::int64_t size : spec.shape) {
    line += ' ' + std::to_string(size);
  }
  return line;
}

// The lines of the parameters outside the blocks and of the last block.
std::vector<std::string> lines(const DecoderConfig& config, Family family) {
  std::vector<std::string> lines;
  for (const ParameterSpec& spec : parameter_specs(config, family)) {
    EXPECT_EQ(spec.name.ends_with(".bias"), spec.is_bias);
    EXPECT_EQ(spec.layer >= 0, spec.name.find("layers") != std::string::npos);
    if (spec.layer < 0 || spec.layer == config.num_layers - 1) {
      lines.push_back(text(spec));
    }
  }
  return lines;
}

TEST(ParametersTest, LlamaHasTheNamesAndOrderOfTransformers) {
  const std::vector<std::string> expected = {"model.embed_tokens.weight 11 12",
                                             "model.layers.1.self_attn.q_proj.weight 20 12",
                                             "model.layers.1.self_attn.k_proj.weight 10 12",
                                             "model.layers.1.self_attn.v_proj.weight 10 12",
                                             "model.layers.1.self_attn.o_proj.weight 12 20",
                                             "model.layers.1.mlp.gate_proj.weight 7 12",
                                             "model.layers.1.mlp.up_proj.weight 7 12",
                                             "model.layers.1.mlp.down_proj.weight 12 7",
                                             "model.layers.1.input_layernorm.weight 12",
                                             "model.layers.1.post_attention_layernorm.weight 12",
                                             "model.norm.weight 12",
                                             "lm_head.weight 11 12"};
  EXPECT_EQ(lines(llama(), Family::kLlama), expected);
  EXPECT_EQ(parameter_specs(llama(), Family::kLlama).size(), 3U + 2U * 9U);
}

TEST(ParametersTest, LlamaHasWhatTheConfigurationSwitchesOn) {
  DecoderConfig config = llama();
  config.num_layers = 1;
  config.has_tied_head = true;
  config.has_qkv_bias = config.has_out_bias = config.has_ffn_bias = config.has_qk_norm = true;
  const std::vector<std::string> expected = {"model.embed_tokens.weight 11 12",
                                             "model.layers.0.self_attn.q_proj.weight 20 12",
                                             "model.layers.0.self_attn.q_proj.bias 20",
                                             "model.layers.0.self_attn.k_proj.weight 10 12",
                                             "model.layers.0.self_attn.k_proj.bias 10",
                                             "model.layers.0.self_attn.v_proj.weight 10 12",
                                             "model.layers.0.self_attn.v_proj.bias 10",
                                             "model.layers.0.self_attn.o_proj.weight 12 20",
                                             "model.layers.0.self_attn.o_proj.bias 12",
                                             "model.layers.0.self_attn.q_norm.weight 5",
                                             "model.layers.0.self_attn.k_norm.weight 5",
                                             "model.layers.0.mlp.gate_proj.weight 7 12",
                                             "model.layers.0.mlp.gate_proj.bias 7",
                                             "model.layers.0.mlp.up_proj.weight 7 12",
                                             "model.layers.0.mlp.up_proj.bias 7",
                                             "model.layers.0.mlp.down_proj.weight 12 7",
                                             "model.layers.0.mlp.down_proj.bias 12",
                                             "model.layers.0.input_layernorm.weight 12",
                                             "model.layers.0.post_attention_layernorm.weight 12",
                                             "model.norm.weight 12"};
  EXPECT_EQ(lines(config, Family::kLlama), expected);
}

TEST(ParametersTest, GptNeoXHasTheNamesAndOrderOfTransformers) {
  const std::vector<std::string> expected = {
      "gpt_neox.embed_in.weight 11 12",
      "gpt_neox.layers.1.input_layernorm.weight 12",
      "gpt_neox.layers.1.input_layernorm.bias 12",
      "gpt_neox.layers.1.post_attention_layernorm.weight 12",
      "gpt_neox.layers.1.post_attention_layernorm.bias 12",
      "gpt_neox.layers.1.attention.query_key_value.weight 36 12",
      "gpt_neox.layers.1.attention.query_key_value.bias 36",
      "gpt_neox.layers.1.attention.dense.weight 12 12",
      "gpt_neox.layers.1.attention.dense.bias 12",
      "gpt_neox.layers.1.mlp.dense_h_to_4h.weight 7 12",
      "gpt_neox.layers.1.mlp.dense_h_to_4h.bias 7",
      "gpt_neox.layers.1.mlp.dense_4h_to_h.weight 12 7",
      "gpt_neox.layers.1.mlp.dense_4h_to_h.bias 12",
      "gpt_neox.final_layer_norm.weight 12",
      "gpt_neox.final_layer_norm.bias 12",
      "embed_out.weight 11 12"};
  EXPECT_EQ(lines(gpt_neox(), Family::kGptNeoX), expected);
  const auto specs = parameter_specs(gpt_neox(), Family::kGptNeoX);
  EXPECT_EQ(specs.back().other_name, "lm_head.weight");
  EXPECT_EQ(specs.front().other_name, "");
}

TEST(ParametersTest, EachParameterHasItsRole) {
  const auto role_of = [](Family family, const std::string& part) {
    const auto specs = parameter_specs(family == Family::kLlama ? llama() : gpt_neox(), family);
    std::set<Role> roles;
    for (const ParameterSpec& spec : specs) {
      if (spec.name.find(part) != std::string::npos) {
        roles.insert(spec.role);
      }
    }
    return roles;
  };
  using Roles = std::set<Role>;
  EXPECT_EQ(role_of(Family::kLlama, "embed_tokens"), Roles{Role::kEmbed});
  EXPECT_EQ(role_of(Family::kLlama, "self_attn."),
            (Roles{Role::kQuery, Role::kKey, Role::kValue, Role::kOut}));
  EXPECT_EQ(role_of(Family::kLlama, "mlp."), (Roles{Role::kGate, Role::kUp, Role::kDown}));
  EXPECT_EQ(role_of(Family::kLlama, "layers.1.input_layernorm"), Roles{Role::kAttentionNorm});
  EXPECT_EQ(role_of(Family::kLlama, "post_attention"), Roles{Role::kFfnNorm});
  EXPECT_EQ(role_of(Family::kLlama, "model.norm"), Roles{Role::kFinalNorm});
  EXPECT_EQ(role_of(Family::kLlama, "lm_head"), Roles{Role::kHead});
  EXPECT_EQ(role_of(Family::kGptNeoX, "attention.query"), Roles{Role::kQueryKeyValue});
  EXPECT_EQ(role_of(Family::kGptNeoX, "attention.dense"), Roles{Role::kOut});
  EXPECT_EQ(role_of(Family::kGptNeoX, "h_to_4h"), Roles{Role::kUp});
  EXPECT_EQ(role_of(Family::kGptNeoX, "4h_to_h"), Roles{Role::kDown});
  EXPECT_EQ(role_of(Family::kGptNeoX, "input_layernorm"), Roles{Role::kAttentionNorm});
  EXPECT_EQ(role_of(Family::kGptNeoX, "post_attention"), Roles{Role::kFfnNorm});
  EXPECT_EQ(role_of(Family::kGptNeoX, "final_layer_norm"), Roles{Role::kFinalNorm});
  EXPECT_EQ(role_of(Family::kGptNeoX, "embed_out"), Roles{Role::kHead});
}

TEST(ParametersTest, AConfigurationThatAFamilyHasNoNamesForIsRefused) {
  PAPERLAB_EXPECT_THROW(parameter_specs(gpt_neox(), Family::kLlama), ValueError, "has_fused_qkv");
  PAPERLAB_EXPECT_THROW(parameter_specs(llama(), Family::kGptNeoX), ValueError, "need has_fused");
  DecoderConfig gated = gpt_neox();
  gated.has_gate = true;
  PAPERLAB_EXPECT_THROW(parameter_specs(gated, Family::kGptNeoX), ValueError, "no has_gate");
}

TEST(ParametersTest, ATiedHeadHasTheNamesThatFilesUse) {
  EXPECT_EQ(head_names(Family::kLlama), std::vector<std::string>{"lm_head.weight"});
  EXPECT_EQ(head_names(Family::kGptNeoX),
            (std::vector<std::string>{"embed_out.weight", "lm_head.weight"}));
}

}  // namespace
}  // namespace paperlab::nn
