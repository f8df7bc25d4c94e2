#include "paperlab/mudd/initial_values.h"

#include <ATen/Parallel.h>
#include <ATen/ops/eye.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "paperlab/core/error.h"
#include "paperlab/mudd/layout.h"
#include "paperlab/mudd/vit.h"
#include "tests/paperlab/mudd/mudd_cases.h"

namespace paperlab::mudd {
namespace {

using Values = std::map<std::string, at::Tensor>;

Values values_of(const MuddConfig& config, std::uint64_t seed = 1,
                 at::ScalarType dtype = at::kDouble, const InitOptions& options = {}) {
  Values values;
  const std::vector<nn::ParameterSpec> specs = parameter_specs(config);
  const std::vector<at::Tensor> tensors = initial_values(config, seed, dtype, options);
  EXPECT_EQ(tensors.size(), specs.size());
  for (std::size_t i = 0; i < specs.size(); ++i) {
    EXPECT_EQ(tensors[i].sizes().vec(), specs[i].shape) << specs[i].name;
    EXPECT_EQ(tensors[i].scalar_type(), dtype) << specs[i].name;
    EXPECT_TRUE(tensors[i].is_contiguous()) << specs[i].name;
    values.emplace(specs[i].name, tensors[i]);
  }
  return values;
}

// Of n normal values the mean is within 5 std / sqrt(n) of 0 and the standard deviation within
// 5 std / sqrt(2 n) of its own, but for one case in a million.
void expect_normal(const at::Tensor& values, double std) {
  const auto n = static_cast<double>(values.numel());
  EXPECT_NEAR(values.mean().item<double>(), 0.0, 5.0 * std / std::sqrt(n));
  EXPECT_NEAR(values.square().mean().sqrt().item<double>(), std, 5.0 * std / std::sqrt(2.0 * n));
}

bool all_equal(const at::Tensor& values, double number) {
  return values.eq(number).all().item<bool>();
}

TEST(MuddInitialValuesTest, EveryStreamStartsAsTheNewestState) {
  for (const Variant variant : {Variant::kMudd, Variant::kStatic, Variant::kDynamic,
                                Variant::kMultiwayStatic, Variant::kMultiwayDynamic}) {
    for (const auto& [name, value] : values_of(small(variant))) {
      if (name.starts_with("dense_bs.")) {
        const std::int64_t newest = value.size(1) - 1;
        EXPECT_TRUE(all_equal(value.select(1, newest), 1.0)) << name;
        EXPECT_TRUE(all_equal(value.narrow(1, 0, newest), 0.0)) << name;
      } else if (name.starts_with("dynamic_dense.") && name.ends_with(".w2.weight")) {
        EXPECT_TRUE(all_equal(value, 0.0)) << name;
      } else if (name.starts_with("dynamic_dense.")) {
        expect_normal(value, 1.0 / 8.0);  // D = 64
      }
    }
  }
}

TEST(MuddInitialValuesTest, OnlyTheNewestSourceCountsWithFewerSources) {
  MuddConfig config = small(Variant::kMultiwayStatic);
  config.dilation = 2;
  const Values dilated = values_of(config);
  EXPECT_TRUE(all_equal(dilated.at("dense_bs.4").select(1, 2), 1.0));  // of X_1, X_3, X_5
  EXPECT_EQ(dilated.at("dense_bs.4").sum().item<double>(), 4.0);
}

TEST(MuddInitialValuesTest, PrePostNormsStartSmall) {
  for (const PrePostNorm norm : {PrePostNorm::kEq10, PrePostNorm::kLaterRevision}) {
    MuddConfig config = small(Variant::kMultiwayDynamic);
    config.pre_post_norm = norm;
    const Values values = values_of(config);
    EXPECT_TRUE(all_equal(values.at("dense_bs.3"), 0.0));
    EXPECT_TRUE(all_equal(values.at("dynamic_dense.3.w2.weight"), 0.0));
    EXPECT_TRUE(all_equal(values.at("dynamic_dense.3.norm.weight"), 1.0));
    EXPECT_TRUE(all_equal(values.at("post_norms.3.weight"), 1e-3));
    EXPECT_TRUE(all_equal(values.at("source_norms.0.weight"), 1.0));
  }
}

TEST(MuddInitialValuesTest, HyperConnectionsStartAsOneStream) {
  for (const std::int64_t streams : {1, 2, 4}) {
    MuddConfig config = small(Variant::kHyperConnections);
    config.num_streams = streams;
    const Values values = values_of(config);
    for (std::int64_t site = 0; site < 16; ++site) {
      const std::string at = "hyper_connections." + std::to_string(site) + '.';
      const at::Tensor alpha = values.at(at + "static_alpha");
      const at::Tensor unit = at::zeros({streams}, at::kDouble);
      unit.select(0, site % streams).fill_(1.0);
      EXPECT_TRUE(alpha.select(1, 0).equal(unit)) << site;
      EXPECT_TRUE(alpha.narrow(1, 1, streams).equal(at::eye(streams, at::kDouble))) << site;
      EXPECT_TRUE(all_equal(values.at(at + "static_beta"), 1.0));
      EXPECT_TRUE(all_equal(values.at(at + "norm.weight"), 1.0));
      EXPECT_TRUE(all_equal(values.at(at + "dynamic_alpha_fn"), 0.0));
      EXPECT_TRUE(all_equal(values.at(at + "dynamic_beta_fn"), 0.0));
      EXPECT_EQ(values.at(at + "dynamic_alpha_scale").item<double>(), 0.01);
      EXPECT_EQ(values.at(at + "dynamic_beta_scale").item<double>(), 0.01);
    }
  }
}

TEST(MuddInitialValuesTest, RoutersStartWithTheirOwnHeads) {
  MuddConfig config = small(Variant::kLime);
  config.num_kv_heads = 2;
  const Values values = values_of(config);
  EXPECT_EQ(values.count("routers.0"), 0U);
  for (std::int64_t layer = 1; layer < 8; ++layer) {
    const at::Tensor router = values.at("routers." + std::to_string(layer));
    EXPECT_TRUE(router.narrow(1, 2 * layer, 2).equal(at::eye(2, at::kDouble)));
    const at::Tensor others = router.narrow(1, 0, 2 * layer).abs();
    const double bound = std::sqrt(3.0 / static_cast<double>(2 * (layer + 1)));
    EXPECT_LE(others.max().item<double>(), bound);
    EXPECT_GT(others.min().item<double>(), 0.0);
    // That 4 values are all so small is one case in 256.
    EXPECT_GT(others.max().item<double>(), bound / 4.0);
  }
  EXPECT_FALSE(values.at("routers.1")
                   .narrow(1, 0, 2)
                   .equal(values_of(config, 2).at("routers.1").narrow(1, 0, 2)));
}

TEST(MuddInitialValuesTest, MatricesAreXavierNormal) {
  const Values values = values_of(small(Variant::kMudd));
  expect_normal(values.at("tok_embeddings.weight"), std::sqrt(2.0 / 320.0));
  expect_normal(values.at("output.weight"), std::sqrt(2.0 / 320.0));
  expect_normal(values.at("layers.2.attention.wv.weight"), std::sqrt(2.0 / 128.0));
  expect_normal(values.at("layers.5.feed_forward.w3.weight"), std::sqrt(2.0 / 232.0));
  EXPECT_TRUE(all_equal(values.at("norm.weight"), 1.0));
  EXPECT_TRUE(all_equal(values.at("layers.2.attention_norms.1.weight"), 1.0));
}

TEST(MuddInitialValuesTest, PythiaHasItsOwn) {
  MuddConfig config = small(Variant::kMudd);
  config.parallel_block = true;
  const Values values = values_of(config);
  const double plain = std::sqrt(2.0 / (5.0 * 64.0));
  const double last = 2.0 / (8.0 * std::sqrt(64.0));
  expect_normal(values.at("tok_embeddings.weight"), plain);
  expect_normal(values.at("layers.2.attention.wq.weight"), plain);
  expect_normal(values.at("layers.2.feed_forward.w1.weight"), plain);
  expect_normal(values.at("layers.2.attention.wo.weight"), last);
  expect_normal(values.at("layers.2.feed_forward.w2.weight"), last);
  expect_normal(values.at("dynamic_dense.6.w1.weight"), 1.0 / 8.0);
  EXPECT_TRUE(all_equal(values.at("layers.2.attention.wq.bias"), 0.0));
  EXPECT_TRUE(all_equal(values.at("layers.2.attention_norms.2.bias"), 0.0));
}

TEST(MuddInitialValuesTest, StandardDeviationsMayBeChosen) {
  InitOptions options;
  options.std = 0.006;
  const Values values = values_of(small(Variant::kMudd), 3, at::kDouble, options);
  expect_normal(values.at("tok_embeddings.weight"), 0.006);
  expect_normal(values.at("layers.2.feed_forward.w2.weight"), 0.006);
  expect_normal(values.at("dynamic_dense.6.w1.weight"), 1.0 / 8.0);
  options.embedding_std = 0.25;
  const Values other = values_of(small(Variant::kMudd), 3, at::kDouble, options);
  expect_normal(other.at("tok_embeddings.weight"), 0.25);
  expect_normal(other.at("output.weight"), 0.006);
}

// So models of different variants can be compared from the same start.
TEST(MuddInitialValuesTest, TheBackboneIsTheSameInEveryVariant) {
  const Values base = values_of(small(Variant::kBase));
  for (const Variant variant : kVariants) {
    MuddConfig config = small(variant);
    config.has_qk_norm = true;
    const Values values = values_of(config);
    for (const auto& [name, value] : base) {
      if (value.dim() == 2) {
        EXPECT_TRUE(values.at(name).equal(value)) << name;
      }
    }
  }
}

TEST(MuddInitialValuesTest, NoTwoMatricesAreAlike) {
  const Values values = values_of(small(Variant::kMudd));
  std::map<double, std::string> first;
  for (const auto& [name, value] : values) {
    if (value.dim() == 2 && !name.ends_with(".w2.weight") && !name.starts_with("dense_bs.")) {
      // The quotient of the first two draws does not depend on the standard deviation.
      const at::Tensor flat = value.flatten();
      const double key = flat[1].item<double>() / flat[0].item<double>();
      EXPECT_TRUE(first.emplace(key, name).second) << name << " and " << first[key];
    }
  }
}

TEST(MuddInitialValuesTest, AFunctionOfTheSeedForAnyNumberOfThreads) {
  const MuddConfig config = small(Variant::kMudd);
  const Values once = values_of(config, 7);
  const int num_threads = at::get_num_threads();
  for (const int threads : {1, 2, 3}) {
    at::set_num_threads(threads);
    for (const auto& [name, value] : values_of(config, 7)) {
      EXPECT_TRUE(value.equal(once.at(name))) << name << ", " << threads << " threads";
    }
  }
  at::set_num_threads(num_threads);
  EXPECT_FALSE(values_of(config, 8).at("output.weight").equal(once.at("output.weight")));
}

TEST(MuddInitialValuesTest, NarrowTypesAreRoundedOnce) {
  const MuddConfig config = small(Variant::kLime);
  const Values exact = values_of(config, 5);
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    for (const auto& [name, value] : values_of(config, 5, dtype)) {
      EXPECT_TRUE(value.equal(exact.at(name).to(dtype))) << name;
    }
  }
}

TEST(MuddInitialValuesTest, BadArgumentsAreRefused) {
  MuddConfig config = small(Variant::kMudd);
  EXPECT_THROW(initial_values(config, 1, at::kHalf), DTypeError);
  InitOptions options;
  options.std = -1.0;
  EXPECT_THROW(initial_values(config, 1, at::kFloat, options), ValueError);
  options = {};
  options.embedding_std = std::nan("");
  EXPECT_THROW(initial_values(config, 1, at::kFloat, options), ValueError);
  config.ways = "X";
  EXPECT_THROW(initial_values(config, 1, at::kFloat), ValueError);
}

VitConfig small_vit(Variant variant) {
  VitConfig config;
  config.patches = {1, 8, 8, 2, 2};
  config.num_labels = 10;
  config.model = small(variant);
  config.model.pre_post_norm = PrePostNorm::kEq10;
  return config;
}

TEST(VitInitialValuesTest, TheBackboneIsThatOfThePlainModel) {
  std::map<std::string, at::Tensor> plain;
  for (const Variant variant : {Variant::kBase, Variant::kMultiwayDynamic}) {
    const VitConfig config = small_vit(variant);
    const std::vector<nn::ParameterSpec> specs = parameter_specs(config);
    const std::vector<at::Tensor> values = initial_values(config, 3, at::kDouble);
    ASSERT_EQ(values.size(), specs.size());
    for (std::size_t i = 0; i < specs.size(); ++i) {
      const bool is_frozen = specs[i].role == nn::Role::kPositionEmbed;
      EXPECT_EQ(values[i].requires_grad(), !is_frozen) << specs[i].name;
      const auto [found, is_new] = plain.emplace(specs[i].name, values[i]);
      EXPECT_TRUE(is_new || found->second.equal(values[i])) << specs[i].name;
    }
  }
  EXPECT_TRUE(all_equal(plain.at("post_norms.3.weight"), 1e-3));
  // Xavier: a patch of 4 lanes to 64.
  expect_normal(plain.at("vit.embeddings.patch_embeddings.projection.weight"),
                std::sqrt(2.0 / (4.0 + 64.0)));
  EXPECT_THROW(initial_values(small_vit(Variant::kLime), 1, at::kFloat), ValueError);
  EXPECT_THROW(initial_values(small_vit(Variant::kBase), 1, at::kHalf), DTypeError);
  EXPECT_THROW(sincos_positions(2, 2, 6, at::kFloat), ValueError);
}

TEST(VitTest, AnEncodersConnectionNeedsNormsFirstAndItsMeanPictures) {
  const VitConfig config = small_vit(Variant::kBase);
  const auto make = [](const nn::ParameterOf& of) {
    EXPECT_NE(of("vit.layernorm.weight"), nullptr);
    EXPECT_THROW(of("nothing"), ValueError);
    return std::make_shared<nn::ResidualConnection>();
  };
  const auto encoder = [&](const nn::EncoderConfig& form) {
    return nn::Encoder(form, parameter_specs(config), initial_values(config, 1, at::kFloat), make)
        .forward({{}, {}, {}, at::zeros({2, 1, 8, 8})});
  };
  nn::EncoderConfig form = encoder_config(config);
  EXPECT_EQ(encoder(form).sizes().vec(), (std::vector<std::int64_t>{2, 10}));
  form.is_norm_first = false;
  EXPECT_THROW(encoder(form), ValueError);
  form = encoder_config(config);
  form.patches.num_channels = 0;
  EXPECT_THROW(encoder(form), ValueError);
}

}  // namespace
}  // namespace paperlab::mudd
