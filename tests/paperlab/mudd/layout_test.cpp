#include "paperlab/mudd/layout.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "paperlab/core/json.h"
#include "paperlab/io/safetensors.h"
#include "paperlab/mudd/published.h"
#include "tests/paperlab/mudd/mudd_cases.h"

namespace paperlab::mudd {
namespace {

using nn::Role;
using Shape = std::vector<std::int64_t>;
using Shapes = std::map<std::string, Shape>;

Shapes shapes_of(const MuddConfig& config) {
  Shapes shapes;
  for (const nn::ParameterSpec& spec : parameter_specs(config)) {
    EXPECT_TRUE(shapes.emplace(spec.name, spec.shape).second) << spec.name << " comes twice";
  }
  return shapes;
}

std::int64_t count_of(const MuddConfig& config) {
  std::int64_t count = 0;
  for (const auto& [name, shape] : shapes_of(config)) {
    std::int64_t size = 1;
    for (const std::int64_t extent : shape) {
      size *= extent;
    }
    count += size;
  }
  return count;
}

// The names of a that b has not.
std::set<std::string> differences(const Shapes& a, const Shapes& b) {
  std::set<std::string> names;
  for (const auto& [name, shape] : a) {
    if (b.count(name) == 0) {
      names.insert(name);
    }
  }
  return names;
}

// 2 blocks of width 8, so that lists of names are short.
MuddConfig tiny(Variant variant) {
  MuddConfig config = small(variant);
  config.num_layers = 2;
  config.d_model = 8;
  config.num_heads = 2;
  return config;
}

TEST(MuddLayoutTest, GoldenDirectoriesHaveTheseNamesAndShapes) {
  for (const std::string folder : {"muddformer", "muddformer-plain", "muddpythia"}) {
    const std::string path = PAPERLAB_TEST_DATA "/mudd/" + folder;
    const MuddConfig config =
        read_published_config(folder, read_json(path + "/config.json")).config;
    Shapes stored;
    const io::SafetensorsFile file(path + "/model.safetensors");
    for (const auto& entry : file.tensors()) {
      stored[entry.name] = entry.shape;
    }
    EXPECT_EQ(shapes_of(config), stored) << folder;
  }
}

TEST(MuddLayoutTest, BaseHasTheBackboneAlone) {
  EXPECT_EQ(shapes_of(tiny(Variant::kBase)), (Shapes{{"tok_embeddings.weight", {256, 8}},
                                                     {"layers.0.attention.wq.weight", {8, 8}},
                                                     {"layers.0.attention.wk.weight", {8, 8}},
                                                     {"layers.0.attention.wv.weight", {8, 8}},
                                                     {"layers.0.attention.wo.weight", {8, 8}},
                                                     {"layers.0.feed_forward.w1.weight", {168, 8}},
                                                     {"layers.0.feed_forward.w2.weight", {8, 168}},
                                                     {"layers.0.feed_forward.w3.weight", {168, 8}},
                                                     {"layers.0.ffn_norm.weight", {8}},
                                                     {"layers.0.attention_norm.weight", {8}},
                                                     {"layers.1.attention.wq.weight", {8, 8}},
                                                     {"layers.1.attention.wk.weight", {8, 8}},
                                                     {"layers.1.attention.wv.weight", {8, 8}},
                                                     {"layers.1.attention.wo.weight", {8, 8}},
                                                     {"layers.1.feed_forward.w1.weight", {168, 8}},
                                                     {"layers.1.feed_forward.w2.weight", {8, 168}},
                                                     {"layers.1.feed_forward.w3.weight", {168, 8}},
                                                     {"layers.1.ffn_norm.weight", {8}},
                                                     {"layers.1.attention_norm.weight", {8}},
                                                     {"norm.weight", {8}},
                                                     {"output.weight", {256, 8}}}));
}

TEST(MuddLayoutTest, NamesOfTheVariants) {
  const Shapes base = shapes_of(tiny(Variant::kBase));
  const auto added = [&](Variant variant) { return differences(shapes_of(tiny(variant)), base); };
  using Names = std::set<std::string>;
  const Names norms = {"layers.1.attention_norms.0.weight", "layers.1.attention_norms.1.weight",
                       "layers.1.attention_norms.2.weight"};
  const Names weights = {"dense_bs.0", "dense_bs.1"};
  const Names generators = {"dynamic_dense.0.w1.weight", "dynamic_dense.0.w2.weight",
                            "dynamic_dense.1.w1.weight", "dynamic_dense.1.w2.weight"};
  const auto join = [](Names a, const Names& b) {
    a.insert(b.begin(), b.end());
    return a;
  };
  EXPECT_EQ(added(Variant::kStatic), weights);
  EXPECT_EQ(added(Variant::kDynamic), join(weights, generators));
  EXPECT_EQ(added(Variant::kMultiwayStatic), join(weights, norms));
  EXPECT_EQ(added(Variant::kMultiwayDynamic), join(join(weights, norms), generators));
  EXPECT_EQ(added(Variant::kMudd), added(Variant::kMultiwayDynamic));
  EXPECT_EQ(added(Variant::kLime), Names{"routers.1"});
  EXPECT_EQ(added(Variant::kHyperConnections).size(), 4U * 7U);
  for (const Variant variant : kVariants) {
    const Names lost = differences(base, shapes_of(tiny(variant)));
    EXPECT_EQ(lost, is_multiway(variant) ? Names{"layers.1.attention_norm.weight"} : Names());
  }
}

TEST(MuddLayoutTest, ShapesOfTheConnections) {
  const Shapes multiway = shapes_of(tiny(Variant::kMultiwayDynamic));
  EXPECT_EQ(multiway.at("dense_bs.0"), (Shape{4, 2}));
  EXPECT_EQ(multiway.at("dynamic_dense.0.w1.weight"), (Shape{8, 8}));
  EXPECT_EQ(multiway.at("dynamic_dense.0.w2.weight"), (Shape{8, 8}));
  EXPECT_EQ(multiway.at("dense_bs.1"), (Shape{1, 3}));
  EXPECT_EQ(multiway.at("dynamic_dense.1.w1.weight"), (Shape{12, 8}));
  EXPECT_EQ(multiway.at("dynamic_dense.1.w2.weight"), (Shape{3, 12}));
  const Shapes single = shapes_of(tiny(Variant::kDynamic));
  EXPECT_EQ(single.at("dense_bs.0"), (Shape{1, 2}));
  EXPECT_EQ(single.at("dynamic_dense.0.w1.weight"), (Shape{2, 8}));
  MuddConfig lime = tiny(Variant::kLime);
  EXPECT_EQ(shapes_of(lime).at("routers.1"), (Shape{2, 4}));
  lime.num_kv_heads = 1;
  EXPECT_EQ(shapes_of(lime).at("routers.1"), (Shape{1, 2}));
}

TEST(MuddLayoutTest, HyperConnectionsHaveTheseNamesAndShapes) {
  MuddConfig config = tiny(Variant::kHyperConnections);
  config.num_streams = 3;
  const Shapes shapes = shapes_of(config);
  for (const std::string number : {"0", "1", "2", "3"}) {
    const std::string at = "hyper_connections." + number + '.';
    EXPECT_EQ(shapes.at(at + "norm.weight"), (Shape{8}));
    EXPECT_EQ(shapes.at(at + "static_alpha"), (Shape{3, 4}));
    EXPECT_EQ(shapes.at(at + "static_beta"), (Shape{3}));
    EXPECT_EQ(shapes.at(at + "dynamic_alpha_fn"), (Shape{8, 4}));
    EXPECT_EQ(shapes.at(at + "dynamic_beta_fn"), (Shape{8}));
    EXPECT_EQ(shapes.at(at + "dynamic_alpha_scale"), Shape());
    EXPECT_EQ(shapes.at(at + "dynamic_beta_scale"), Shape());
  }
}

TEST(MuddLayoutTest, PrePostNormsHaveScales) {
  for (const PrePostNorm norm : {PrePostNorm::kEq10, PrePostNorm::kLaterRevision}) {
    MuddConfig config = tiny(Variant::kMultiwayDynamic);
    config.pre_post_norm = norm;
    const Shapes shapes = shapes_of(config);
    EXPECT_EQ(differences(shapes, shapes_of(tiny(Variant::kMultiwayDynamic))),
              (std::set<std::string>{"source_norms.0.weight", "source_norms.1.weight",
                                     "source_norms.2.weight", "post_norms.0.weight",
                                     "post_norms.1.weight", "dynamic_dense.0.norm.weight",
                                     "dynamic_dense.1.norm.weight"}));
    EXPECT_EQ(shapes.at("source_norms.2.weight"), (Shape{8}));
    EXPECT_EQ(shapes.at("post_norms.0.weight"), (Shape{4, 8}));
    EXPECT_EQ(shapes.at("post_norms.1.weight"), (Shape{1, 8}));
    EXPECT_EQ(shapes.at("dynamic_dense.0.norm.weight"), (Shape{8}));
    config.variant = Variant::kStatic;
    EXPECT_EQ(shapes_of(config).count("dynamic_dense.0.norm.weight"), 0U);
    EXPECT_EQ(shapes_of(config).at("post_norms.0.weight"), (Shape{1, 8}));
    config.variant = Variant::kBase;
    EXPECT_EQ(shapes_of(config), shapes_of(tiny(Variant::kBase)));
  }
}

TEST(MuddLayoutTest, BlocksWithoutAnAggregateHaveNoWeights) {
  MuddConfig config = small(Variant::kMultiwayDynamic);
  config.period = 3;
  const Shapes shapes = shapes_of(config);
  EXPECT_EQ(shapes.count("dense_bs.2") + shapes.count("dense_bs.5"), 2U);
  for (const char* name : {"dense_bs.0", "dense_bs.4", "dense_bs.7", "dynamic_dense.7.w1.weight"}) {
    EXPECT_EQ(shapes.count(name), 0U) << name;
  }
  EXPECT_EQ(shapes.count("layers.1.attention_norms.0.weight"), 1U);
  config.period = 1;
  config.ways = "QKV";
  EXPECT_EQ(shapes_of(config).at("dense_bs.6"), (Shape{3, 8}));
  EXPECT_EQ(shapes_of(config).count("dense_bs.7"), 0U);
  config.ways = "R";
  EXPECT_EQ(shapes_of(config).at("dense_bs.6"), (Shape{1, 8}));
  EXPECT_EQ(shapes_of(config).at("dense_bs.7"), (Shape{1, 9}));
}

// Counted by an independent implementation of the paper: 8 blocks of width 64, 4 heads, FFN 168.
TEST(MuddLayoutTest, CountsOfParameters) {
  constexpr std::int64_t kBase = 422'976;
  EXPECT_EQ(count_of(small(Variant::kBase)), kBase);
  EXPECT_EQ(count_of(small(Variant::kStatic)), kBase + 44);
  EXPECT_EQ(count_of(small(Variant::kDynamic)), 428'091);
  EXPECT_EQ(count_of(small(Variant::kMultiwayStatic)), 424'021);
  EXPECT_EQ(count_of(small(Variant::kMultiwayDynamic)), 438'857);
  EXPECT_EQ(count_of(small(Variant::kHyperConnections)), 430'560);
  MuddConfig mudd = small(Variant::kMudd);
  mudd.ffn_reallocation = true;
  mudd.ffn_round = 8;
  EXPECT_EQ(count_of(mudd), 437'321);
  mudd.pre_post_norm = PrePostNorm::kEq10;
  EXPECT_EQ(count_of(mudd), 440'265);
}

TEST(MuddLayoutTest, EachPartOfTheBlocksHasItsRole) {
  MuddConfig config = small(Variant::kMudd);
  config.has_qk_norm = true;
  std::map<std::string, nn::ParameterSpec> specs;
  for (const nn::ParameterSpec& spec : parameter_specs(config)) {
    specs.emplace(spec.name, spec);
  }
  const std::map<std::string, Role> roles = {{"attention.wq", Role::kQuery},
                                             {"attention.wk", Role::kKey},
                                             {"attention.wv", Role::kValue},
                                             {"attention.wo", Role::kOut},
                                             {"attention.q_norm", Role::kQueryNorm},
                                             {"attention.k_norm", Role::kKeyNorm},
                                             {"feed_forward.w1", Role::kGate},
                                             {"feed_forward.w3", Role::kUp},
                                             {"feed_forward.w2", Role::kDown},
                                             {"ffn_norm", Role::kFfnNorm},
                                             {"attention_norms.0", Role::kAttentionNorm}};
  for (const auto& [name, role] : roles) {
    const nn::ParameterSpec& spec = specs.at("layers.3." + name + ".weight");
    EXPECT_EQ(spec.role, role) << name;
    EXPECT_EQ(spec.layer, 3) << name;
    EXPECT_FALSE(spec.is_bias) << name;
  }
  EXPECT_EQ(specs.at("layers.0.attention_norm.weight").role, Role::kAttentionNorm);
  EXPECT_EQ(specs.at("layers.3.attention_norms.1.weight").role, Role::kConnection);
  EXPECT_EQ(specs.at("layers.3.attention_norms.2.weight").role, Role::kConnection);
  EXPECT_EQ(specs.at("dense_bs.3").role, Role::kConnection);
  EXPECT_EQ(specs.at("dense_bs.3").layer, 3);
  EXPECT_EQ(specs.at("tok_embeddings.weight").role, Role::kEmbed);
  EXPECT_EQ(specs.at("tok_embeddings.weight").layer, -1);
  EXPECT_EQ(specs.at("norm.weight").role, Role::kFinalNorm);
  EXPECT_EQ(specs.at("output.weight").role, Role::kHead);
}

TEST(MuddLayoutTest, EveryBlockHasOneParameterOfARole) {
  for (const Variant variant : kVariants) {
    std::set<std::pair<Role, std::int64_t>> seen;
    for (const nn::ParameterSpec& spec : parameter_specs(small(variant))) {
      if (spec.role != Role::kConnection) {
        EXPECT_TRUE(seen.emplace(spec.role, spec.layer).second) << spec.name;
      }
    }
  }
}

TEST(MuddLayoutTest, PythiaHasBiasesAndNoGate) {
  MuddConfig config = tiny(Variant::kMultiwayDynamic);
  config.parallel_block = true;
  const Shapes shapes = shapes_of(config);
  EXPECT_EQ(shapes.count("layers.0.feed_forward.w3.weight"), 0U);
  EXPECT_EQ(shapes.at("layers.0.feed_forward.w1.bias"), (Shape{168}));
  EXPECT_EQ(shapes.at("layers.0.feed_forward.w2.bias"), (Shape{8}));
  for (const char* name : {"norm.bias", "layers.0.attention.wo.bias", "layers.0.ffn_norm.bias",
                           "layers.0.attention_norm.bias", "layers.1.attention_norms.2.bias"}) {
    EXPECT_EQ(shapes.count(name), 1U) << name;
  }
  for (const nn::ParameterSpec& spec : parameter_specs(config)) {
    EXPECT_EQ(spec.is_bias, spec.name.ends_with(".bias")) << spec.name;
    EXPECT_TRUE(!spec.name.ends_with(".w1.weight") || spec.role == Role::kConnection ||
                spec.role == Role::kUp);
  }
  config.has_linear_bias = false;
  EXPECT_EQ(shapes_of(config).count("layers.0.feed_forward.w1.bias"), 0U);
  EXPECT_EQ(shapes_of(config).count("layers.0.attention.wq.bias"), 1U);
}

TEST(MuddLayoutTest, GroupedAndTied) {
  MuddConfig config = small(Variant::kMudd);
  config.num_kv_heads = 1;
  config.has_tied_head = true;
  const Shapes shapes = shapes_of(config);
  EXPECT_EQ(shapes.at("layers.0.attention.wk.weight"), (Shape{16, 64}));
  EXPECT_EQ(shapes.at("layers.0.attention.wq.weight"), (Shape{64, 64}));
  EXPECT_EQ(shapes.count("output.weight"), 0U);
}

TEST(MuddLayoutTest, DecoderConfigOfAFormer) {
  MuddConfig config = small(Variant::kMudd);
  config.ffn_reallocation = true;
  config.num_kv_heads = 2;
  config.norm_eps = 1e-4;
  config.rope_base = 500.0;
  config.max_positions = 77;
  config.eos_token_id = 5;
  const nn::DecoderConfig decoder = decoder_config(config);
  EXPECT_EQ((Shape{decoder.vocab_size, decoder.num_layers, decoder.d_model, decoder.num_heads,
                   decoder.num_kv_heads, decoder.head_dim, decoder.d_ff, decoder.max_positions}),
            (Shape{256, 8, 64, 4, 2, 16, 168, 77}));
  EXPECT_EQ(decoder.ffn_dims, reallocated_ffn_dims(168, 8));
  EXPECT_EQ(decoder.norm, nn::Norm::kRms);
  EXPECT_EQ(decoder.activation, nn::Activation::kSilu);
  EXPECT_EQ(decoder.norm_eps, 1e-4);
  EXPECT_EQ(decoder.rope.base, 500.0);
  EXPECT_EQ(decoder.rope.rotary_dim, 16);
  EXPECT_TRUE(decoder.has_gate);
  EXPECT_FALSE(decoder.is_parallel || decoder.has_qkv_bias || decoder.has_fused_qkv);
  EXPECT_EQ(decoder.eos_token_ids, Shape{5});
  EXPECT_TRUE(decoder_config(small(Variant::kBase)).ffn_dims.empty());
}

TEST(MuddLayoutTest, DecoderConfigOfAPythia) {
  MuddConfig config = small(Variant::kMudd);
  config.parallel_block = true;
  const nn::DecoderConfig decoder = decoder_config(config);
  EXPECT_EQ(decoder.norm, nn::Norm::kLayer);
  EXPECT_EQ(decoder.activation, nn::Activation::kGelu);
  EXPECT_EQ(decoder.rope.rotary_dim, 4);
  EXPECT_TRUE(decoder.is_parallel && decoder.has_qkv_bias && decoder.has_out_bias &&
              decoder.has_ffn_bias);
  EXPECT_FALSE(decoder.has_gate || decoder.has_fused_qkv);
  config.has_parallel_residual = config.has_linear_bias = false;
  EXPECT_FALSE(decoder_config(config).is_parallel || decoder_config(config).has_ffn_bias);
}

TEST(MuddLayoutTest, BadConfigurationsAreRefused) {
  MuddConfig config = small(Variant::kMudd);
  config.num_heads = 5;
  EXPECT_NE(value_error([&] { parameter_specs(config); }), "");
  EXPECT_NE(value_error([&] { decoder_config(config); }), "");
}

}  // namespace
}  // namespace paperlab::mudd
