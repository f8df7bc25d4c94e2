#include "paperlab/mudd/published.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "paperlab/core/error.h"
#include "paperlab/core/json.h"
#include "paperlab/mudd/layout.h"
#include "tests/paperlab/mudd/mudd_cases.h"

namespace paperlab::mudd {
namespace {

constexpr const char* kFolders[] = {"muddformer", "muddformer-plain", "muddpythia"};

Json golden(const std::string& folder) {
  return read_json(PAPERLAB_TEST_DATA "/mudd/" + folder + "/config.json");
}

Json with(Json config, const std::string& patch) {
  config.merge_patch(Json::parse(patch));  // a null removes the key
  return config;
}

MuddConfig read(const Json& config) {
  return read_published_config("dir/config.json", config).config;
}

MuddConfig former(const std::string& patch) { return read(with(golden("muddformer"), patch)); }

std::vector<std::vector<std::int64_t>> shapes_of(const MuddConfig& config) {
  std::vector<std::vector<std::int64_t>> shapes;
  for (const nn::ParameterSpec& spec : parameter_specs(config)) {
    shapes.push_back(spec.shape);
  }
  return shapes;
}

std::vector<std::string> names_of(const MuddConfig& config) {
  std::vector<std::string> names;
  for (const nn::ParameterSpec& spec : parameter_specs(config)) {
    names.push_back(spec.name);
  }
  return names;
}

TEST(PublishedConfigTest, FormerIsRead) {
  const PublishedModel model = read_published_config("x", golden("muddformer"));
  EXPECT_EQ(model.dtype, "float32");
  const MuddConfig& c = model.config;
  EXPECT_EQ((std::vector<std::int64_t>{c.vocab_size, c.num_layers, c.d_model, c.num_heads,
                                       c.num_kv_heads, c.head_dim, c.d_ff, c.max_positions}),
            (std::vector<std::int64_t>{97, 4, 32, 4, 4, 8, 256, 64}));
  EXPECT_EQ(c.variant, Variant::kMudd);
  EXPECT_EQ(c.ways, "QKVR");
  EXPECT_EQ(c.norm_eps, 1e-6);
  EXPECT_EQ(c.rope_base, 10000.0);
  EXPECT_EQ(c.hidden_round, 64);
  EXPECT_EQ(c.last_hidden_expand, 4);
  EXPECT_TRUE(c.has_qk_norm && has_ffn_reallocation(c));
  EXPECT_FALSE(c.parallel_block || c.has_tied_head || c.has_tanh_gelu);
  EXPECT_EQ(rotary_dim_of(c), 8);
  EXPECT_EQ(c.bos_token_id, 0);
  EXPECT_EQ(c.eos_token_id, 0);
  EXPECT_FALSE(c.pad_token_id.has_value());
}

TEST(PublishedConfigTest, PlainFormerAndPythiaAreRead) {
  const MuddConfig plain = read(golden("muddformer-plain"));
  EXPECT_EQ(plain.hidden_round, 0);
  EXPECT_EQ(plain.last_hidden_expand, 1);
  EXPECT_FALSE(plain.has_qk_norm);
  const MuddConfig pythia = read(golden("muddpythia"));
  EXPECT_TRUE(pythia.parallel_block && pythia.has_parallel_residual && pythia.has_linear_bias);
  EXPECT_EQ(pythia.norm_eps, 1e-5);
  EXPECT_EQ(rotary_dim_of(pythia), 4);
}

TEST(PublishedConfigTest, GoldenFilesComeBackKeyForKey) {
  for (const char* folder : kFolders) {
    EXPECT_EQ(published_config(read(golden(folder))), golden(folder)) << folder;
  }
}

TEST(PublishedConfigTest, EveryKeyCounts) {
  EXPECT_EQ(num_kv_heads_of(former(R"({"n_local_heads": 1})")), 1);
  EXPECT_EQ(num_kv_heads_of(former(R"({"n_local_heads": 2})")), 2);
  EXPECT_EQ(num_kv_heads_of(former(R"({"n_local_heads": -1})")), 4);
  EXPECT_EQ(num_kv_heads_of(former(R"({"n_local_heads": null})")), 4);
  EXPECT_EQ(head_dim_of(former(R"({"head_dim": 12})")), 12);
  EXPECT_EQ(former(R"({"block_size": 9})").max_positions, 9);
  EXPECT_EQ(former(R"({"norm_eps": 0.25})").norm_eps, 0.25);
  EXPECT_EQ(former(R"({"rope_base": 123.5})").rope_base, 123.5);
  EXPECT_FALSE(former(R"({"use_qk_norm": false})").has_qk_norm);
  EXPECT_EQ(former(R"({"expand_last": false})").last_hidden_expand, 1);
  EXPECT_EQ(former(R"({"round64": false})").hidden_round, 0);
  EXPECT_TRUE(former(R"({"tie_word_embeddings": true})").has_tied_head);
  EXPECT_EQ(former(R"({"pad_token_id": 7})").pad_token_id, 7);
  EXPECT_EQ(former(R"({"dynamic_dense": false})").variant, Variant::kMultiwayStatic);
  EXPECT_EQ(former(R"({"dense_type": "qkv"})").ways, "QKV");
  EXPECT_EQ(former(R"({"dense": false, "sepln": false})").variant, Variant::kBase);
  EXPECT_EQ(former(R"({"dense_type": "l", "sepln": false})").variant, Variant::kDynamic);
  EXPECT_EQ(former(R"({"dense_type": "l", "sepln": null, "dynamic_dense": false})").variant,
            Variant::kStatic);
  EXPECT_TRUE(has_ffn_reallocation(former(R"({"dense": false, "sepln": false})")));
  const auto pythia = [](const char* patch) { return read(with(golden("muddpythia"), patch)); };
  EXPECT_EQ(rotary_dim_of(pythia(R"({"rotary_pct": 1.0})")), 16);
  EXPECT_EQ(rotary_dim_of(pythia(R"({"rotary_pct": 0.3})")), 4);
  EXPECT_FALSE(pythia(R"({"use_linear_bias": false})").has_linear_bias);
  EXPECT_FALSE(pythia(R"({"use_parallel_residual": false})").has_parallel_residual);
}

TEST(PublishedConfigTest, AbsentKeysHaveDefaults) {
  const MuddConfig config = read(Json::parse(R"({"model_type": "muddformer"})"));
  EXPECT_EQ((std::vector<std::int64_t>{config.vocab_size, config.num_layers, config.d_model,
                                       config.num_heads, num_kv_heads_of(config),
                                       head_dim_of(config), config.d_ff, config.max_positions}),
            (std::vector<std::int64_t>{50432, 32, 2560, 32, 32, 80, 6912, 2048}));
  EXPECT_EQ(config.variant, Variant::kMudd);
  EXPECT_EQ(config.last_hidden_expand, 1);
  EXPECT_EQ(config.hidden_round, 0);
  EXPECT_FALSE(config.has_qk_norm);
  const MuddConfig pythia = read(Json::parse(R"({"model_type": "muddpythia"})"));
  EXPECT_EQ(pythia.d_ff, 10240);
  EXPECT_EQ(pythia.norm_eps, 1e-5);
  EXPECT_EQ(rotary_dim_of(pythia), 20);
}

// Settings that change no number, and dtypes.
TEST(PublishedConfigTest, HarmlessKeysAreAllowed) {
  EXPECT_EQ(published_config(former(
                R"({"use_layer_cache": false, "is_training": true, "stack_hidden": true,
                    "use_gradient_checkpointing": true, "auto_map": {"AutoConfig": "x.Y"},
                    "_name_or_path": "x", "unknown_but_null": null, "architectures": []})")),
            golden("muddformer"));
  EXPECT_EQ(read_published_config("x", with(golden("muddformer"), R"({"torch_dtype": "bfloat16"})"))
                .dtype,
            "bfloat16");
}

TEST(PublishedConfigTest, BadSettingsAreNamed) {
  const auto refused = [](const std::string& folder, const std::string& patch,
                          const std::string& part) {
    const std::string message = value_error([&] { read(with(golden(folder), patch)); });
    EXPECT_TRUE(message.starts_with("dir/config.json: ")) << patch << message;
    EXPECT_NE(message.find(part), std::string::npos) << patch << ": " << message;
  };
  for (const char* key :
       {"vocab_size", "n_layer", "dim", "n_head", "block_size", "intermediate_size",
        "n_local_heads", "head_dim", "norm_eps", "rope_base", "paperlab_dilation",
        "paperlab_period", "paperlab_window", "paperlab_num_streams", "paperlab_ffn_round",
        "paperlab_hidden_round", "paperlab_last_hidden_expand"}) {
    const std::string quoted = '\'' + std::string(key) + '\'';
    refused("muddformer", '{' + Json(key).dump() + R"(: 0})", quoted);
    refused("muddformer", '{' + Json(key).dump() + R"(: "8"})", quoted);
    refused("muddformer", '{' + Json(key).dump() + R"(: -3})", quoted);
  }
  for (const char* key :
       {"use_qk_norm", "dense", "dynamic_dense", "sepln", "expand_last", "round64", "stack_hidden",
        "use_layer_cache", "is_training", "use_gradient_checkpointing", "tie_word_embeddings",
        "paperlab_ffn_reallocation"}) {
    refused("muddformer", '{' + Json(key).dump() + R"(: 1})", '\'' + std::string(key) + '\'');
  }
  refused("muddformer", R"({"model_type": "llama"})", "'model_type'");
  refused("muddformer", R"({"model_type": null})", "'model_type'");
  refused("muddformer", R"({"model_type": "muddpythia"})", "'architectures'");
  refused("muddformer", R"({"dim": 33, "head_dim": null})", "'dim'");
  refused("muddformer", R"({"head_dim": 7})", "'head_dim'");
  refused("muddformer", R"({"n_local_heads": 3})", "'n_local_heads'");
  refused("muddformer", R"({"intermediate_size": 100})", "'intermediate_size'");  // 50 goes to 0
  refused("muddformer", R"({"dense_type": "rq"})", "'dense_type'");
  refused("muddformer", R"({"dense_type": ""})", "'dense_type'");
  refused("muddformer", R"({"dense_type": "qkvm"})", "'dense_type'");
  refused("muddformer", R"({"sepln": false})", "'sepln'");
  refused("muddformer", R"({"dense": false})", "'sepln'");
  refused("muddformer", R"({"eos_token_id": "x"})", "'eos_token_id'");
  refused("muddformer", R"({"use_linear_bias": true})", "'use_linear_bias'");
  refused("muddformer", R"({"use_parallel_residual": true})", "'use_parallel_residual'");
  refused("muddformer", R"({"rope_scaling": {"factor": 2}})", "'rope_scaling'");
  refused("muddformer", R"({"paperlab_variant": "lime"})", "'paperlab_variant'");
  refused("muddformer", R"({"paperlab_gelu": "quick"})", "'paperlab_gelu'");
  refused("muddformer", R"({"paperlab_pre_post_norm": true})", "'paperlab_pre_post_norm'");
  refused("muddformer", R"({"paperlab_dilation": 2, "paperlab_window": 2})", "window");
  refused("muddpythia", R"({"rotary_pct": 0.0})", "'rotary_pct'");
  refused("muddpythia", R"({"rotary_pct": 1.5})", "'rotary_pct'");
  refused("muddpythia", R"({"rotary_pct": 0.2})", "'rotary_pct'");  // 3 lanes
  EXPECT_NE(value_error([] { read_published_config("x", Json::array()); }), "");
}

// What is written describes the same model: its parameters, and every option that the variant uses.
void expect_same(const MuddConfig& got, const MuddConfig& config) {
  EXPECT_EQ(names_of(got), names_of(config));
  EXPECT_EQ(shapes_of(got), shapes_of(config));
  EXPECT_EQ(published_config(got), published_config(config));
  EXPECT_EQ(is_dense(got.variant), is_dense(config.variant));
  EXPECT_EQ(got.has_tanh_gelu, config.has_tanh_gelu);
  EXPECT_EQ(got.pre_post_norm, config.pre_post_norm);
  EXPECT_EQ(got.norm_eps, config.norm_eps);
  EXPECT_EQ(got.rope_base, config.rope_base);
  EXPECT_EQ(rotary_dim_of(got), rotary_dim_of(config));
  EXPECT_EQ(got.has_parallel_residual, config.has_parallel_residual);
  for (std::int64_t layer = 0; layer < config.num_layers; ++layer) {
    EXPECT_EQ(ways_of(got, layer), ways_of(config, layer));
    EXPECT_EQ(sources_of(got, layer), sources_of(config, layer));
  }
}

void expect_kept(const MuddConfig& config) { expect_same(read(published_config(config)), config); }

TEST(PublishedConfigTest, EveryVariantComesBack) {
  for (const Variant variant : kVariants) {
    for (const bool reallocates : {false, true}) {
      MuddConfig config = small(variant);
      config.ffn_reallocation = reallocates;
      expect_kept(config);
      const MuddConfig got = read(published_config(config));
      EXPECT_EQ(has_ffn_reallocation(got), reallocates);
      EXPECT_EQ(is_multiway(got.variant), is_multiway(variant));
    }
  }
  EXPECT_EQ(read(published_config(small(Variant::kLime))).variant, Variant::kLime);
  EXPECT_EQ(read(published_config(small(Variant::kHyperConnections))).variant,
            Variant::kHyperConnections);
}

TEST(PublishedConfigTest, EveryOptionComesBack) {
  std::vector<MuddConfig> configs(16, small(Variant::kMudd));
  configs[0].ways = "KR";
  configs[1].has_tanh_gelu = true;
  configs[2].hidden_round = 32;
  configs[3].last_hidden_expand = 7;
  configs[4].ffn_reallocation = true;
  configs[4].ffn_round = 8;
  configs[5].dilation = 3;
  configs[6].period = 2;
  configs[7].window = 2;
  configs[8].pre_post_norm = PrePostNorm::kLaterRevision;
  configs[9].pre_post_norm = PrePostNorm::kEq10;
  configs[10].num_streams = 2;
  configs[11].parallel_block = true;
  configs[12].parallel_block = true;
  configs[12].head_dim = 20;  // 5 lanes make 2 pairs
  configs[12].has_parallel_residual = configs[12].has_linear_bias = false;
  configs[13].rotary_pct = 0.5;
  configs[14].norm_eps = 0.1;
  configs[14].rope_base = 1e6 + 0.5;
  configs[14].has_qk_norm = configs[14].has_tied_head = true;
  configs[15].num_kv_heads = 1;
  configs[15].pad_token_id = 3;
  for (const MuddConfig& config : configs) {
    expect_kept(config);
  }
}

// lanes / width, rounded, times width may fall below the number of lanes.
TEST(PublishedConfigTest, EveryNumberOfRotatedLanesComesBack) {
  MuddConfig config = small(Variant::kMudd);
  config.parallel_block = true;
  for (config.head_dim = 2; config.head_dim <= 130; config.head_dim += 2) {
    for (std::int64_t lanes = 2; lanes <= config.head_dim; lanes += 2) {
      config.rotary_pct = (static_cast<double>(lanes) + 0.5) / static_cast<double>(config.head_dim);
      config.rotary_pct = std::min(config.rotary_pct, 1.0);
      ASSERT_EQ(rotary_dim_of(config), lanes);
      ASSERT_EQ(rotary_dim_of(read(published_config(config))), lanes);
    }
  }
}

TEST(PublishedConfigTest, KeysOfOurOwnStandWhereNeeded) {
  MuddConfig config = small(Variant::kMudd);
  config.ffn_reallocation = true;
  config.ffn_round = 128;
  config.d_ff = 256;
  const Json json = published_config(config);
  for (const auto& [key, value] : json.items()) {
    EXPECT_FALSE(key.starts_with("paperlab_")) << key;
  }
  EXPECT_EQ(published_config(config, "bfloat16")["torch_dtype"], "bfloat16");
  EXPECT_EQ(published_config(small(Variant::kBase))["paperlab_ffn_reallocation"], false);
}

TEST(PublishedConfigTest, BuffersOfTheReleasedCode) {
  for (const char* name : {"layers.0.attention.kv_cache.k_cache",
                           "layers.31.attention.kv_cache.v_cache", "layer_cache.layer_cache"}) {
    EXPECT_TRUE(is_published_buffer(name)) << name;
  }
  for (const char* name :
       {"layers.x.attention.kv_cache.k_cache", "layers..attention.kv_cache.k_cache",
        "layers.0.attention.kv_cache.q_cache", "layers.0.attention.kv_cache.k_cache.x",
        "x.layer_cache.layer_cache", "layer_cache", "k_cache", "layers.0", "layers.", "",
        "layers.0.attention.bias", "layers.0.attention.rotary_emb.inv_freq"}) {
    EXPECT_FALSE(is_published_buffer(name)) << name;
  }
}

}  // namespace
}  // namespace paperlab::mudd
