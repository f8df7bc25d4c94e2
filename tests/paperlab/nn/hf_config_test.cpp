#include "paperlab/nn/hf_config.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "paperlab/core/error.h"
#include "tests/paperlab/nn/hf_config_cases.h"

namespace paperlab::nn {
namespace {

TEST(HfConfigTest, LlamaIsRead) {
  const HfModel model = read_hf_config("config.json", llama());
  EXPECT_EQ(model.family, Family::kLlama);
  EXPECT_EQ(model.model_type, "llama");
  EXPECT_EQ(model.architecture, "LlamaForCausalLM");
  EXPECT_EQ(model.dtype, "float32");
  const DecoderConfig& c = model.config;
  EXPECT_EQ((std::vector<std::int64_t>{c.vocab_size, c.num_layers, c.d_model, c.num_heads,
                                       c.num_kv_heads, c.head_dim, c.d_ff, c.max_positions}),
            (std::vector<std::int64_t>{32, 3, 16, 4, 2, 6, 24, 64}));
  EXPECT_EQ(c.norm, Norm::kRms);
  EXPECT_EQ(c.norm_eps, 1e-5);
  EXPECT_EQ(c.activation, Activation::kSilu);
  EXPECT_TRUE(c.has_gate && c.has_tied_head);
  EXPECT_FALSE(c.has_fused_qkv || c.has_qkv_bias || c.has_out_bias || c.has_ffn_bias);
  EXPECT_FALSE(c.has_head_bias || c.has_qk_norm || c.is_parallel);
  EXPECT_EQ(c.rope.base, 5000.0);
  EXPECT_EQ(c.rope.rotary_dim, 6);
  EXPECT_EQ(c.rope.max_positions, 64);
  EXPECT_EQ(c.rope.scaling, RopeScaling::kNone);
  EXPECT_TRUE(c.windows.empty());
  EXPECT_EQ(c.eos_token_ids, std::vector<std::int64_t>{2});
  EXPECT_FALSE(c.pad_token_id.has_value());
  EXPECT_EQ(c.init_std, 0.03);
}

TEST(HfConfigTest, GptNeoXIsRead) {
  const HfModel model = read_hf_config("config.json", gpt_neox());
  EXPECT_EQ(model.family, Family::kGptNeoX);
  EXPECT_EQ(model.dtype, "bfloat16");
  const DecoderConfig& c = model.config;
  EXPECT_EQ((std::vector<std::int64_t>{c.vocab_size, c.num_layers, c.d_model, c.num_heads,
                                       c.num_kv_heads, c.head_dim, c.d_ff, c.max_positions}),
            (std::vector<std::int64_t>{40, 2, 32, 4, 4, 8, 64, 128}));
  EXPECT_EQ(c.norm, Norm::kLayer);
  EXPECT_EQ(c.activation, Activation::kGelu);
  EXPECT_TRUE(c.has_fused_qkv && c.has_qkv_bias && c.has_out_bias && c.has_ffn_bias);
  EXPECT_TRUE(c.is_parallel);
  EXPECT_FALSE(c.has_gate || c.has_tied_head || c.has_head_bias);
  EXPECT_EQ(c.rope.rotary_dim, 2);
  const DecoderConfig other =
      read(with(gpt_neox(), R"({"attention_bias": false, "use_parallel_residual": false})"));
  EXPECT_FALSE(other.has_qkv_bias || other.has_out_bias || other.is_parallel);
  EXPECT_TRUE(other.has_ffn_bias);
}

TEST(HfConfigTest, AbsentSettingsAreTheDefaultsOfTheType) {
  const auto read_type = [](const char* type) { return read({{"model_type", type}}); };
  const auto sizes = [](const DecoderConfig& c) {
    return std::vector<std::int64_t>{c.vocab_size, c.d_model,      c.d_ff,     c.num_layers,
                                     c.num_heads,  c.num_kv_heads, c.head_dim, c.max_positions};
  };
  using Sizes = std::vector<std::int64_t>;
  EXPECT_EQ(sizes(read_type("llama")), (Sizes{32000, 4096, 11008, 32, 32, 32, 128, 2048}));
  EXPECT_EQ(sizes(read_type("mistral")), (Sizes{32000, 4096, 14336, 32, 32, 8, 128, 131072}));
  EXPECT_EQ(sizes(read_type("qwen2")), (Sizes{151936, 4096, 22016, 32, 32, 32, 128, 32768}));
  EXPECT_EQ(sizes(read_type("qwen3")), (Sizes{151936, 4096, 22016, 32, 32, 32, 128, 32768}));
  EXPECT_EQ(sizes(read_type("gpt_neox")), (Sizes{50432, 6144, 24576, 44, 64, 64, 96, 2048}));
  for (const char* type : {"llama", "mistral", "qwen2", "qwen3", "gpt_neox"}) {
    const DecoderConfig c = read_type(type);
    EXPECT_FALSE(c.has_tied_head);
    EXPECT_EQ(c.rope.base, 10000.0);
    EXPECT_EQ(c.init_std, 0.02);
    EXPECT_TRUE(c.eos_token_ids.empty());
    EXPECT_EQ(c.norm_eps, std::string(type) == "gpt_neox" ? 1e-5 : 1e-6);
  }
  EXPECT_EQ(read_type("gpt_neox").rope.rotary_dim, 24);
  EXPECT_TRUE(read_type("gpt_neox").is_parallel);
  EXPECT_EQ(read_type("mistral").windows, Sizes(32, 4096));
  EXPECT_TRUE(read_type("qwen2").windows.empty());
}

TEST(HfConfigTest, EachTypeHasItsBiases) {
  const auto biases = [](const Json& config) {
    const DecoderConfig c = read(config);
    return std::vector<bool>{c.has_qkv_bias, c.has_out_bias, c.has_ffn_bias, c.has_qk_norm};
  };
  using Flags = std::vector<bool>;
  EXPECT_EQ(biases(with(llama(), R"({"attention_bias": true})")),
            (Flags{true, true, false, false}));
  EXPECT_EQ(biases(with(llama(), R"({"mlp_bias": true})")), (Flags{false, false, true, false}));
  EXPECT_EQ(biases(qwen2()), (Flags{true, false, false, false}));
  EXPECT_EQ(biases({{"model_type", "mistral"}}), (Flags{false, false, false, false}));
  EXPECT_EQ(biases({{"model_type", "qwen3"}}), (Flags{false, false, false, true}));
  EXPECT_EQ(biases({{"model_type", "qwen3"}, {"attention_bias", true}}),
            (Flags{true, true, false, true}));
  expect_refused({{"model_type", "mistral"}, {"attention_bias", true}},
                 "setting 'attention_bias' must be false or null, got true");
  expect_refused(with(qwen2(), R"({"mlp_bias": true})"), "'mlp_bias' must be false");
}

TEST(HfConfigTest, HeadsCanBeOfAnySizeAndGrouped) {
  EXPECT_EQ(read(with(llama(), R"({"head_dim": 10})")).head_dim, 10);
  EXPECT_EQ(read(with(llama(), R"({"head_dim": null})")).head_dim, 4);
  EXPECT_EQ(read(with(llama(), R"({"num_key_value_heads": null})")).num_kv_heads, 4);
  Json config = llama();
  config["num_key_value_heads"] = nullptr;
  config["head_dim"] = nullptr;
  EXPECT_EQ(read(config).num_kv_heads, 4);
  EXPECT_EQ(read(config).head_dim, 4);
  EXPECT_EQ(read(with(llama(), R"({"hidden_size": 18})")).head_dim, 6);
  expect_refused(with(llama(), R"({"hidden_size": 18, "head_dim": null})"),
                 "setting 'hidden_size' must be a multiple of num_attention_heads (4), got 18");
  expect_refused(
      with(llama(), R"({"num_key_value_heads": 3})"),
      "'num_key_value_heads' must be a divisor of num_attention_heads (4), unlike 3, got 3");
  expect_refused({{"model_type", "mistral"}, {"hidden_size", 16}, {"num_attention_heads", 4}},
                 "'num_key_value_heads' must be given as a divisor of num_attention_heads (4), "
                 "unlike its default 8, got nothing");
  expect_refused(with(gpt_neox(), R"({"hidden_size": 30})"), "'hidden_size' must be a multiple");
  expect_refused(with(llama(), R"({"head_dim": 5})"),
                 "'head_dim' must be such that an even number of a head's lanes is rotated");
  expect_refused(with(gpt_neox(), R"({"hidden_size": 48})"), "rotated (here 3 of 12), got 48");
}

TEST(HfConfigTest, ActivationsHaveAllTheirNames) {
  const auto activation = [](const char* name) {
    Json config = llama();
    config["hidden_act"] = name;
    return read(config).activation;
  };
  for (const char* name : {"silu", "swish"}) {
    EXPECT_EQ(activation(name), Activation::kSilu);
  }
  for (const char* name : {"gelu", "gelu_python"}) {
    EXPECT_EQ(activation(name), Activation::kGelu);
  }
  for (const char* name :
       {"gelu_new", "gelu_fast", "gelu_accurate", "gelu_pytorch_tanh", "gelu_python_tanh"}) {
    EXPECT_EQ(activation(name), Activation::kGeluTanh);
  }
  EXPECT_EQ(activation("relu"), Activation::kRelu);
  for (const char* name : {"quick_gelu", "gelu_10", "relu2", "", "SILU"}) {
    Json config = llama();
    config["hidden_act"] = name;
    expect_refused(config, "setting 'hidden_act' must be one of silu, swish, gelu,");
  }
}

TEST(HfConfigTest, WindowsAreThoseOfTheLayers) {
  using Windows = std::vector<std::int64_t>;
  Json mistral = {{"model_type", "mistral"}, {"num_hidden_layers", 2}};
  mistral["sliding_window"] = 5;
  EXPECT_EQ(read(mistral).windows, (Windows{5, 5}));
  mistral["sliding_window"] = nullptr;
  EXPECT_TRUE(read(mistral).windows.empty());
  expect_refused(mistral, "sliding_window", "an integer from 1", {0, -1, 2.5, "4"});

  const Json windowed = with(qwen2(), R"({"use_sliding_window": true, "sliding_window": 7,
                                          "layer_types": null})");
  EXPECT_EQ(read(windowed).windows, (Windows{0, 0, 7}));
  EXPECT_EQ(read(with(windowed, R"({"max_window_layers": 0})")).windows, (Windows{7, 7, 7}));
  EXPECT_TRUE(read(with(windowed, R"({"max_window_layers": 28})")).windows.empty());
  EXPECT_TRUE(read(with(windowed, R"({"use_sliding_window": false})")).windows.empty());
  const Json typed = with(windowed, R"({"layer_types": ["sliding_attention", "full_attention",
                                                        "sliding_attention"]})");
  EXPECT_EQ(read(typed).windows, (Windows{7, 0, 7}));
  expect_refused(with(typed, R"({"use_sliding_window": false})"), "'layer_types' must be without");
  expect_refused(with(typed, R"({"num_hidden_layers": 2})"), "'layer_types' must be a list of 2");
  expect_refused(windowed, "layer_types", "a list of full_attention and sliding_attention",
                 {{"full_attention", "conv", "full_attention"}, {1, 2, 3}});
  expect_refused(windowed, "layer_types", "a list of 3", {"full_attention", 7, Json::array()});
  expect_refused(windowed, "max_window_layers", "an integer >= 0",
                 {-1, 0.5, "2", nullptr, 18446744073709551615U});
}

TEST(HfConfigTest, TokenIdsAreThoseOfTheGenerationConfigIfThereIsOne) {
  const auto ids = [](const Json& config, const char* generation) {
    const Json json = Json::parse(generation);
    const DecoderConfig c = read_hf_config("config.json", config, &json).config;
    return std::pair(c.eos_token_ids, c.pad_token_id);
  };
  using Ids = std::vector<std::int64_t>;
  const Json config = with(llama(), R"({"eos_token_id": [3, 5], "pad_token_id": 4})");
  EXPECT_EQ(read(config).eos_token_ids, (Ids{3, 5}));
  EXPECT_EQ(read(config).pad_token_id, 4);
  EXPECT_EQ(ids(config, R"({"eos_token_id": 7, "pad_token_id": 0})"),
            std::pair(Ids{7}, std::optional<std::int64_t>(0)));
  EXPECT_EQ(ids(config, R"({"eos_token_id": [8, 9], "temperature": 0.6})").first, (Ids{8, 9}));
  EXPECT_EQ(ids(config, "{}"), std::pair(Ids{}, std::optional<std::int64_t>()));
  EXPECT_EQ(ids(config, R"({"eos_token_id": null})").first, Ids{});
  EXPECT_EQ(read(with(llama(), R"({"eos_token_id": -1, "pad_token_id": -1})")).pad_token_id,
            std::nullopt);
  EXPECT_EQ(read(with(llama(), R"({"pad_token_id": 32000})")).pad_token_id, 32000);
  expect_refused(config, "eos_token_id", "a token id or a list",
                 {"2", 2.5, true, {1, "2"}, {{}}, 18446744073709551615U});
  expect_refused(config, "pad_token_id", "a token id", {"2", {1, 2}, 1e300});
  PAPERLAB_EXPECT_THROW(ids(config, R"({"eos_token_id": "x"})"), ValueError,
                        "generation_config.json: setting 'eos_token_id' must be");
  const Json wrong = Json::array();
  PAPERLAB_EXPECT_THROW(read_hf_config("a/config.json", config, &wrong), ValueError,
                        "a/generation_config.json: must be an object, got []");
}

TEST(HfConfigTest, OtherModelsAreRefusedWithTheListOfTheKnown) {
  const std::string types =
      "one of llama, mistral, qwen2, qwen3, gpt_neox, gpt2, opt, gemma, gemma2, gemma3_text, got ";
  expect_refused(with(llama(), R"({"model_type": "gemma3"})"), "'model_type' must be " + types);
  expect_refused(with(llama(), R"({"model_type": null})"), types + "nothing");
  expect_refused(llama(), "model_type", types, {7, nullptr, Json::array(), ""});
  expect_refused(llama(), "architectures", "[\"LlamaForCausalLM\"] for the model type 'llama', got",
                 {"LlamaForCausalLM",
                  {"LlamaForSequenceClassification"},
                  {"Qwen2ForCausalLM"},
                  {1},
                  Json::object({{"a", 1}})});
  for (const Json& absent : {Json(nullptr), Json::array()}) {
    Json config = llama();
    config["architectures"] = absent;
    EXPECT_EQ(read_hf_config("config.json", config).architecture, "LlamaForCausalLM");
  }
  expect_refused(with(llama(), R"({"quantization_config": {"bits": 4}})"),
                 "setting 'quantization_config' must be absent: quantized weights are not read");
  for (const Json& other : {Json::array(), Json("llama"), Json(3), Json(nullptr)}) {
    expect_refused(other, "must be an object, got " + other.dump());
  }
}

TEST(HfConfigTest, UnknownSettingsAreRefusedUnlessTheyAreNull) {
  expect_refused(with(llama(), R"({"logit_softcap": 30.0})"),
                 "setting 'logit_softcap' (30.0) is not known for the model type 'llama'; those "
                 "that count are ");
  expect_refused(with(llama(), R"({"num_experts": 8})"), "intermediate_size, ");
  Json config = llama();
  config["logit_softcap"] = nullptr;
  config["quantization_config"] = nullptr;
  EXPECT_EQ(read(config).vocab_size, 32);
  config.erase("logit_softcap");
  for (const char* key : {"id2label", "_name_or_path", "torch_dtype", "hidden_dropout",
                          "transformers.js_config", "repetition_penalty"}) {
    config[key] = key;
  }
  EXPECT_EQ(read(config).vocab_size, 32);
  expect_refused(llama(), "pretraining_tp", "1 or null", {2, "1", 0});
  expect_refused(llama(), "is_encoder_decoder", "false or null", {true, 0});
  expect_refused(llama(), "chunk_size_feed_forward", "0 or null", {4});
  expect_refused(llama(), "rope_interleaved", "false or null", {true});
  expect_refused(llama(), "use_sliding_window", "false or null", {true});
  expect_refused(llama(), "pruned_heads", "{} or null", {{{"1", {0}}}});
  EXPECT_EQ(read(with(llama(), R"({"pruned_heads": {}, "rope_interleaved": false})")).d_ff, 24);
}

TEST(HfConfigTest, HostileValuesAreRefusedUnderTheirNames) {
  const std::vector<Json> no_sizes = {0,
                                      -1,
                                      1.0,
                                      2.5,
                                      "16",
                                      true,
                                      nullptr,
                                      {16},
                                      Json::object(),
                                      2147483648,
                                      1e300,
                                      18446744073709551615U,
                                      std::numeric_limits<std::int64_t>::min()};
  for (const char* key : {"vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
                          "num_attention_heads", "max_position_embeddings"}) {
    expect_refused(llama(), key, "an integer from 1 to ", no_sizes);
    expect_refused(gpt_neox(), key, "an integer from 1 to ", no_sizes);
  }
  for (const char* key : {"num_key_value_heads", "head_dim"}) {
    expect_refused(llama(), key, "an integer from 1 to ", {0, -4, 2.0, "2", false, 2147483648});
  }
  expect_refused(llama(), "num_hidden_layers", "an integer from 1 to 10000", {10001});
  const double infinity = std::numeric_limits<double>::infinity();
  const std::vector<Json> no_numbers = {-1e-9,   "1e-5",        true,
                                        nullptr, infinity,      -infinity,
                                        NAN,     Json::array(), {{"__float__", "Infinity"}}};
  expect_refused(llama(), "rms_norm_eps", "a finite number >= 0", no_numbers);
  expect_refused(gpt_neox(), "layer_norm_eps", "a finite number >= 0", no_numbers);
  expect_refused(llama(), "initializer_range", "a finite number >= 0", no_numbers);
  for (const char* key : {"attention_bias", "mlp_bias", "tie_word_embeddings"}) {
    expect_refused(llama(), key, "true or false", {0, 1, "true", nullptr});
  }
  expect_refused(gpt_neox(), "use_parallel_residual", "true or false", {0, "false"});
  expect_refused(llama(), "hidden_act", "a string", {1, nullptr, {"silu"}});
  expect_refused(llama(), "dtype", "a string", {1, {"float32"}});
}

TEST(HfConfigTest, ProductsOfSizesAreBounded) {
  expect_refused(with(llama(), R"({"hidden_size": 2147483644, "vocab_size": 2147483647})"),
                 "'hidden_size' must be part of a model of at most 1e13 parameters");
  expect_refused(with(llama(), R"({"num_attention_heads": 2147483646, "num_key_value_heads": 2,
                                   "head_dim": 2147483646})"),
                 "at most 1e13 parameters");
}

TEST(HfConfigTest, LongValuesAreCutInMessages) {
  Json config = llama();
  config["hidden_act"] = std::string(100'000, 'x');
  try {
    read(config);
    FAIL();
  } catch (const ValueError& error) {
    EXPECT_LT(std::string(error.what()).size(), 500U);
  }
  config = llama();
  config[std::string(100'000, 'k')] = std::string("\xFF");
  try {
    read(config);
    FAIL();
  } catch (const ValueError& error) {
    EXPECT_LT(std::string(error.what()).size(), 1500U);
  }
}

TEST(HfConfigTest, TheDtypeIsReadUnderBothNames) {
  const auto dtype = [](const char* patch) {
    return read_hf_config("config.json", with(with(llama(), R"({"dtype": null})"), patch)).dtype;
  };
  EXPECT_EQ(dtype("{}"), std::nullopt);
  EXPECT_EQ(dtype(R"({"torch_dtype": "float16"})"), "float16");
  EXPECT_EQ(dtype(R"({"torch_dtype": "torch.float16"})"), "float16");
  EXPECT_EQ(dtype(R"({"torch_dtype": "float16", "dtype": "bfloat16"})"), "bfloat16");
}

}  // namespace
}  // namespace paperlab::nn
