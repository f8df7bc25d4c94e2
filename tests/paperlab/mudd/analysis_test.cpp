#include "paperlab/mudd/analysis.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/eye.h>
#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "paperlab/core/error.h"
#include "paperlab/core/rng.h"
#include "paperlab/mudd/initial_values.h"
#include "paperlab/mudd/model.h"
#include "paperlab/mudd/trace.h"

namespace paperlab::mudd {
namespace {

constexpr std::int64_t kLength = 6;  // also the size of a head: see WeightsAttention
// Sums of some thousand float64 terms of size 1 in another order.
constexpr double kTolerance = 1e-11;

MuddConfig tiny(Variant variant) {
  MuddConfig config;
  config.vocab_size = 11;
  config.num_layers = 3;
  config.d_model = 12;
  config.num_heads = 2;
  config.d_ff = 16;
  config.ffn_round = 8;
  config.variant = variant;
  return config;
}

// A model away from its initial values.
std::shared_ptr<nn::Decoder> model_of(const MuddConfig& config, double noise = 0.3) {
  std::vector<at::Tensor> values = initial_values(config, 1, at::kDouble);
  std::uint64_t stream = 100;
  for (at::Tensor& value : values) {
    auto* out = value.mutable_data_ptr<double>();
    ++stream;
    for (std::int64_t i = 0; i < value.numel(); ++i) {
      out[i] += noise * (philox_uniform(7, stream, static_cast<std::uint64_t>(i)) - 0.5);
    }
  }
  return make_decoder(config, std::move(values));
}

// More rows than are read at a time where `rows` is large.
at::Tensor tokens_of(std::int64_t rows) {
  at::Tensor tokens = at::empty({rows, kLength}, at::kLong);
  auto* out = tokens.mutable_data_ptr<std::int64_t>();
  for (std::int64_t i = 0; i < tokens.numel(); ++i) {
    out[i] = static_cast<std::int64_t>(11.0 * philox_uniform(3, 0, static_cast<std::uint64_t>(i)));
  }
  return tokens;
}

double cosine(const at::Tensor& a, const at::Tensor& b) {
  return a.dot(b).item<double>() / std::sqrt(a.dot(a).item<double>() * b.dot(b).item<double>());
}

double mean_cosine(const at::Tensor& a, const at::Tensor& b) {
  double sum = 0.0;
  const at::Tensor rows_a = a.reshape({-1, a.size(2)});
  const at::Tensor rows_b = b.reshape({-1, b.size(2)});
  for (std::int64_t i = 0; i < rows_a.size(0); ++i) {
    sum += cosine(rows_a.select(0, i), rows_b.select(0, i));
  }
  return sum / static_cast<double>(rows_a.size(0));
}

TEST(MuddAnalysisTest, CosinesAreThoseOfNeighbouringInputs) {
  const at::NoGradGuard no_grad;
  const MuddConfig config = tiny(Variant::kMudd);
  const auto model = model_of(config);
  const at::Tensor tokens = tokens_of(5);
  const InputCosines found = adjacent_input_cosine(config, *model, tokens);
  EXPECT_EQ(found.ways, "QKVR");
  const Trace seen = trace(config, *model, tokens);
  for (std::size_t pair = 0; pair < 2; ++pair) {
    const Streams& a = seen.streams[pair];
    const Streams& b = seen.streams[pair + 1];
    EXPECT_NEAR(found.cosines[0][pair], mean_cosine(a.query, b.query), kTolerance);
    EXPECT_NEAR(found.cosines[1][pair], mean_cosine(a.key, b.key), kTolerance);
    EXPECT_NEAR(found.cosines[2][pair], mean_cosine(a.value, b.value), kTolerance);
    EXPECT_NEAR(found.cosines[3][pair], mean_cosine(a.residual, b.residual), kTolerance);
  }
}

TEST(MuddAnalysisTest, OneStreamHasOneRowOfCosines) {
  for (const Variant variant : {Variant::kBase, Variant::kStatic, Variant::kDynamic}) {
    const MuddConfig config = tiny(variant);
    const InputCosines found = adjacent_input_cosine(config, *model_of(config), tokens_of(2));
    EXPECT_EQ(found.ways, "R");
    ASSERT_EQ(found.cosines.size(), 1U);
    EXPECT_EQ(found.cosines[0].size(), 2U);
  }
}

TEST(MuddAnalysisTest, PartsOfTheRowsAddUp) {
  const MuddConfig config = tiny(Variant::kMultiwayDynamic);
  const auto model = model_of(config);
  const at::Tensor tokens = tokens_of(800);  // 4,800 tokens: two parts
  const std::vector<at::Tensor> halves = tokens.split(400, 0);
  const auto mean_of = [&](const auto& measure) {
    return (measure(halves[0]) + measure(halves[1])) / 2.0;
  };
  const auto of_cosine = [&](const at::Tensor& rows) {
    return adjacent_input_cosine(config, *model, rows).cosines[2][1];
  };
  EXPECT_NEAR(of_cosine(tokens), mean_of(of_cosine), kTolerance);
  const auto of_heads = [&](const at::Tensor& rows) {
    return head_activation_ratio(config, *model, rows, {2, {5}})[1];
  };
  EXPECT_NEAR(of_heads(tokens), mean_of(of_heads), kTolerance);
}

// Puts the identity in the values' place, so that a head's output is its row of weights.
class WeightsAttention final : public nn::Attention {
 public:
  explicit WeightsAttention(at::Tensor& weights) : weights_(weights) {}

  at::Tensor forward(const nn::AttentionInput& input, nn::LayerCache* cache) const override {
    nn::AttentionInput with_identity = input;
    const at::Tensor identity = at::eye(kLength, input.value.options());
    with_identity.value = identity.unsqueeze(0).unsqueeze(2).expand_as(input.value).contiguous();
    weights_ = nn::FullAttention().forward(with_identity, nullptr);  // [B, T, H, T]
    return nn::FullAttention().forward(input, cache);
  }

  std::unique_ptr<nn::LayerCache> new_cache(const nn::CacheShape& /*shape*/) const override {
    return nullptr;
  }

 private:
  at::Tensor& weights_;
};

TEST(MuddAnalysisTest, AHeadIsActiveWhereItsLargestWeightIsOnNoSink) {
  const at::NoGradGuard no_grad;
  for (const Variant variant : {Variant::kBase, Variant::kMudd}) {
    const MuddConfig config = tiny(variant);
    const auto model = model_of(config, 2.0);  // peaked attention
    const at::Tensor tokens = tokens_of(20);
    const std::vector<double> found = head_activation_ratio(config, *model, tokens, {2, {3, 4}});
    ASSERT_EQ(found.size(), 3U);
    for (std::int64_t layer = 0; layer < 3; ++layer) {
      at::Tensor weights;
      const auto usual = model->block(layer).attention;
      model->block(layer).attention = std::make_shared<WeightsAttention>(weights);
      model->hidden(tokens);
      model->block(layer).attention = usual;
      const at::Tensor best = weights.argmax(3);  // [B, T, H]
      double active = 0.0;
      for (std::int64_t row = 0; row < best.size(0); ++row) {
        const at::Tensor keys = best.select(0, row).flatten();
        for (std::int64_t i = 0; i < keys.numel(); ++i) {
          const auto key = keys.select(0, i).item<std::int64_t>();
          const auto token = tokens.select(0, row).select(0, key).item<std::int64_t>();
          active += key >= 2 && token != 3 && token != 4 ? 1.0 : 0.0;
        }
      }
      EXPECT_NEAR(found[static_cast<std::size_t>(layer)],
                  active / static_cast<double>(best.numel()), kTolerance);
      EXPECT_GT(active, 0.0);
    }
  }
}

TEST(MuddAnalysisTest, WithoutSinksAllHeadsAreActiveAndWithAllTokensNone) {
  const MuddConfig config = tiny(Variant::kBase);
  const auto model = model_of(config);
  EXPECT_EQ(head_activation_ratio(config, *model, tokens_of(3), {0, {}}),
            (std::vector<double>{1.0, 1.0, 1.0}));
  EXPECT_EQ(head_activation_ratio(config, *model, tokens_of(3), {kLength + 1, {}}),
            (std::vector<double>{0.0, 0.0, 0.0}));
}

TEST(MuddAnalysisTest, WeightsAreRectifiedByTheNormsOfTheirSources) {
  const at::NoGradGuard no_grad;
  for (const Variant variant : {Variant::kMudd, Variant::kStatic}) {
    const MuddConfig config = tiny(variant);
    const auto model = model_of(config);
    const at::Tensor tokens = tokens_of(7);
    const Trace seen = trace(config, *model, tokens);
    const std::vector<ConnectionStats> found = rectified_connection_weights(config, *model, tokens);
    ASSERT_EQ(found.size(), 3U);
    for (const ConnectionStats& stats : found) {
      EXPECT_EQ(stats.ways, ways_of(config, stats.layer));
      EXPECT_EQ(stats.sources, sources_of(config, stats.layer));
      const at::Tensor& weights = seen.weights[static_cast<std::size_t>(stats.layer)];
      for (std::int64_t way = 0; way < weights.size(0); ++way) {
        for (std::int64_t j = 0; j < weights.size(3); ++j) {
          const at::Tensor of_source = weights.select(0, way).select(2, j).flatten();
          const at::Tensor& state = seen.states[static_cast<std::size_t>(stats.sources[j])];
          const auto norm = state.square().sum(-1).sqrt().mean().item<double>();
          const auto mean = of_source.mean().item<double>();
          const auto variance = of_source.sub(mean).square().mean().item<double>();
          EXPECT_NEAR(stats.mean.select(0, way).select(0, j).item<double>(), mean * norm,
                      kTolerance);
          // The variance is a difference of squares: its error is that of a square, times 2^-52.
          EXPECT_NEAR(stats.std.select(0, way).select(0, j).item<double>(),
                      std::sqrt(variance) * norm, 1e-7);
        }
      }
    }
  }
}

TEST(MuddAnalysisTest, WhereThereAreNoConnectionsThereAreNoWeights) {
  const MuddConfig config = tiny(Variant::kBase);
  EXPECT_TRUE(rectified_connection_weights(config, *model_of(config), tokens_of(2)).empty());
  MuddConfig sparse = tiny(Variant::kMudd);
  sparse.period = 2;
  const auto found = rectified_connection_weights(sparse, *model_of(sparse), tokens_of(2));
  ASSERT_EQ(found.size(), 1U);
  EXPECT_EQ(found[0].layer, 1);
}

TEST(MuddAnalysisTest, WhatCannotBeReadIsRefused) {
  const MuddConfig config = tiny(Variant::kMudd);
  const auto model = model_of(config);
  EXPECT_THROW(adjacent_input_cosine(config, *model, at::Tensor()), ValueError);
  EXPECT_THROW(head_activation_ratio(config, *model, tokens_of(2).select(0, 0), {}), ValueError);
  EXPECT_THROW(rectified_connection_weights(config, *model, tokens_of(2).narrow(0, 0, 0)),
               ValueError);
  const MuddConfig hyper = tiny(Variant::kHyperConnections);
  EXPECT_THROW(adjacent_input_cosine(hyper, *model_of(hyper), tokens_of(2)), ValueError);
  EXPECT_THROW(head_activation_ratio(config, *model, tokens_of(2), {-1, {}}), ValueError);
  try {
    rectified_connection_weights(hyper, *model_of(hyper), tokens_of(2));
    FAIL();
  } catch (const ValueError& error) {
    EXPECT_TRUE(std::string(error.what()).starts_with("rectified_connection_weights: variant "));
  }
}

}  // namespace
}  // namespace paperlab::mudd
