#include "paperlab/nn/decoder.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/allclose.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/full.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <c10/util/Exception.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

#include "paperlab/core/error.h"
#include "paperlab/nn/generate.h"
#include "paperlab/nn/roles.h"
#include "tests/paperlab/nn/decoder_cases.h"

namespace paperlab::nn {
namespace {

TEST(Decoder, ParametersAreSharedAndExchanged) {
  DecoderConfig config = llama();
  config.has_tied_head = true;
  Decoder decoder = new_decoder(config);
  EXPECT_EQ(decoder.find(Role::kHead), decoder.find(Role::kEmbed));
  EXPECT_EQ(decoder.find(Role::kQueryKeyValue, 0), nullptr);
  EXPECT_EQ(decoder.find(Role::kQuery, 0, true), nullptr);
  EXPECT_EQ(decoder.find(Role::kQuery, 2), nullptr);
  const at::Tensor value = at::full({12, 20}, 0.5, at::kDouble);
  decoder.set_parameter("model.layers.1.mlp.down_proj.weight", value);
  EXPECT_TRUE(decoder.find(Role::kDown, 1)->is_same(value));
  const at::Tensor before = decoder.forward(some_tokens());
  value.mul_(-3.0);
  EXPECT_FALSE(at::allclose(decoder.forward(some_tokens()), before));
  EXPECT_THROW(decoder.set_parameter("no.such", value), ValueError);
  EXPECT_THROW(decoder.set_parameter("model.norm.weight", value), ShapeError);
  EXPECT_THROW(decoder.set_parameter("model.norm.weight", {}), ValueError);
  EXPECT_THROW(decoder.set_parameter("model.norm.weight", at::zeros({12}, at::kLong)), DTypeError);
}

TEST(Decoder, WhatItCannotBeIsRefused) {
  const DecoderConfig good = llama();
  std::vector<DecoderConfig> bad(14, good);
  bad[0].vocab_size = 0;
  bad[1].num_layers = 0;
  bad[2].d_model = -1;
  bad[3].num_heads = 0;
  bad[4].num_kv_heads = 3;
  bad[5].head_dim = 257;
  bad[6].d_ff = 0;
  bad[7].max_positions = 0;
  bad[8].rope.rotary_dim = 5;
  bad[9].rope.rotary_dim = 8;
  bad[10].windows = {1};
  bad[11].has_fused_qkv = true;
  bad[12].ffn_dims = {20};
  bad[13].ffn_dims = {20, 0};
  for (const DecoderConfig& config : bad) {
    EXPECT_THROW(Decoder(config, Family::kLlama, values_of(good)), ValueError);
  }
  auto values = values_of(good);
  values.pop_back();
  EXPECT_THROW(Decoder(good, Family::kLlama, values), ValueError);
  values.emplace_back();
  EXPECT_THROW(Decoder(good, Family::kLlama, values), ValueError);
  values.back() = at::zeros({31, 13}, at::kDouble);
  EXPECT_THROW(Decoder(good, Family::kLlama, values), ShapeError);
  values.back() = at::zeros({31, 12}, at::kInt);
  EXPECT_THROW(Decoder(good, Family::kLlama, values), DTypeError);
}

TEST(Decoder, EachLayerMayHaveAWidthOfItsOwn) {
  DecoderConfig config = llama();
  config.ffn_dims = {20, 20};
  Decoder same = new_decoder(config);
  EXPECT_TRUE(at::equal(same.forward(some_tokens()), new_decoder(llama()).forward(some_tokens())));
  config.ffn_dims = {8, 24};
  Decoder decoder = new_decoder(config);
  EXPECT_EQ(decoder.find(Role::kDown, 0)->size(1), 8);
  EXPECT_EQ(decoder.find(Role::kGate, 1)->size(0), 24);
  EXPECT_EQ(decoder.forward(some_tokens()).size(2), config.vocab_size);
}

TEST(Decoder, PartsThatAreNotThereAreRefused) {
  Decoder decoder = new_decoder(llama());
  EXPECT_THROW(decoder.block(-1), ValueError);
  EXPECT_THROW(decoder.block(2), ValueError);
  EXPECT_THROW(decoder.linear("lm_head.weight"), ValueError);
  EXPECT_THROW(decoder.set_connection(nullptr), ValueError);
  EXPECT_THROW(decoder.new_cache(0, 1), ValueError);
  EXPECT_THROW(decoder.new_cache(1, 0), ValueError);
  EXPECT_THROW(tensor_of(decoder, "q", 2, {}), ValueError);
  EXPECT_THROW(tensor_of(decoder, "q", -1, {}), ValueError);
  EXPECT_THROW(tensor_of(decoder, "k", 0, 2), ValueError);
  EXPECT_THROW(tensor_of(decoder, "up", 0, 0), ValueError);
  EXPECT_THROW(tensor_of(decoder, "up", {}, {}), ValueError);
  EXPECT_THROW(tensor_of(new_decoder(neox()), "gate", 0, {}), ValueError);
  EXPECT_TRUE(tensor_of(decoder, "o", 0, 3).is_alias_of(*decoder.find(Role::kOut, 0)));
  EXPECT_EQ(tensor_of(decoder, "o", 0, 3).sizes(), at::IntArrayRef({12, 6}));
}

TEST(Decoder, TokensThatItCannotReadAreRefused) {
  const Decoder decoder = new_decoder(llama());
  EXPECT_THROW(decoder.forward({}), c10::ValueError);
  EXPECT_THROW(decoder.forward(at::zeros({2}, at::kLong)), c10::ValueError);
  EXPECT_THROW(decoder.forward(at::zeros({2, 0}, at::kLong), {.last_only = true}), c10::ValueError);
  EXPECT_THROW(decoder.forward(at::zeros({2, 33}, at::kLong)), c10::ValueError);
  EXPECT_THROW(decoder.forward(some_tokens().to(at::kInt)), c10::TypeError);
  EXPECT_THROW(decoder.forward(some_tokens() + 31), c10::ValueError);
  EXPECT_THROW(decoder.forward(some_tokens() - 32), c10::ValueError);
  EXPECT_THROW(decoder.forward(some_tokens(), {.attention_mask = at::zeros({7})}), c10::ValueError);
}

TEST(Decoder, NoRowsAndNoTokensGiveNoLogits) {
  for (const DecoderConfig& config : {llama(), neox()}) {
    const Decoder decoder = new_decoder(config);
    const std::int64_t size = decoder.config().vocab_size;
    for (const auto& [rows, length] : {std::pair{0, 3}, {2, 0}, {0, 0}}) {
      const at::Tensor logits = decoder.forward(at::zeros({rows, length}, at::kLong));
      EXPECT_EQ(logits.sizes(), at::IntArrayRef({rows, length, size}));
    }
    EXPECT_EQ(decoder.forward(at::zeros({0, 3}, at::kLong), {.last_only = true}).sizes(),
              at::IntArrayRef({0, 1, size}));
  }
}

TEST(Decoder, Float16IsComputedInFloat32) {
  const Decoder half = new_decoder(llama(), at::kFloat);
  const Decoder wide = new_decoder(llama(), at::kFloat);
  for (std::size_t i = 0; i < half.parameters().size(); ++i) {
    at::Tensor& value = *half.parameters()[i].value;
    value.set_data(value.to(at::kHalf));
    wide.parameters()[i].value->set_data(value.to(at::kFloat));
  }
  const at::Tensor logits = half.forward(some_tokens());
  EXPECT_EQ(logits.scalar_type(), at::kHalf);
  EXPECT_TRUE(at::equal(logits, wide.forward(some_tokens()).to(at::kHalf)));
}

// Cuts of [0, 1] at which the token changes, in thousandths.
std::vector<std::int64_t> drawn(const at::Tensor& logits, double temperature, double top_p) {
  std::vector<std::int64_t> tokens;
  for (int i = 0; i < 1000; ++i) {
    tokens.push_back(sample_token(logits, temperature, top_p, (i + 0.5) / 1000.0));
  }
  return tokens;
}

std::int64_t count(const std::vector<std::int64_t>& tokens, std::int64_t token) {
  return std::count(tokens.begin(), tokens.end(), token);
}

TEST(SampleToken, DrawsAreSharesOfTheUnitInterval) {
  const at::Tensor p = at::tensor({0.125, 0.5, 0.25, 0.125}, at::kDouble);
  const auto all = drawn(p.log(), 1.0, 1.0);
  EXPECT_EQ(count(all, 1), 500);
  EXPECT_EQ(count(all, 2), 250);
  EXPECT_EQ(count(all, 0), 125);
  EXPECT_EQ(count(all, 3), 125);
  EXPECT_EQ(all.front(), 1);  // by likelihood, the first among equals first
  EXPECT_EQ(all[800], 0);
  EXPECT_EQ(all.back(), 3);
  const auto some = drawn(p.log(), 1.0, 0.75);
  EXPECT_EQ(count(some, 1), 667);
  EXPECT_EQ(count(some, 2), 333);
  EXPECT_EQ(count(drawn(p.log(), 1.0, 0.5), 1), 1000);
  EXPECT_EQ(count(drawn(p.log(), 1.0, 1e-300), 1), 1000);
  EXPECT_EQ(count(drawn(p.log(), 1.0, 0.500001), 2), 333);
  const auto hot = drawn(p.log() * 3.0, 3.0, 1.0);
  EXPECT_EQ(hot, all);
  EXPECT_EQ(drawn(p.log().to(at::kBFloat16), 1.0, 1.0).size(), 1000U);
}

TEST(SampleToken, ExtremesAreNoError) {
  constexpr double kInf = std::numeric_limits<double>::infinity();
  const at::Tensor logits = at::tensor({-kInf, 3.0, -kInf, 2.0}, at::kDouble);
  const auto all = drawn(logits, 1.0, 1.0);
  EXPECT_EQ(count(all, 1) + count(all, 3), 1000);
  for (const double temperature : {5e-324, 1e-308, 1e-30}) {
    EXPECT_EQ(count(drawn(logits, temperature, 1.0), 1), 1000);
    EXPECT_EQ(count(drawn(at::tensor({1e308, -1e308, 0.0}, at::kDouble), temperature, 1.0), 0),
              1000);
  }
  EXPECT_EQ(sample_token(at::zeros({1}, at::kDouble), 1.0, 1.0, 0.999999), 0);
  EXPECT_EQ(sample_token(at::zeros({3}, at::kDouble), 1.0, 1.0, 1.0 - 1e-16), 2);
}

TEST(Generate, OptionsThatItCannotHaveAreRefused) {
  const Decoder decoder = new_decoder(llama());
  std::vector<GenerateOptions> bad(8);
  bad[0].max_new_tokens = -1;
  bad[1].max_new_tokens = 26;
  bad[2].temperature = -1.0;
  bad[3].temperature = std::nan("");
  bad[4].top_p = 0.0;
  bad[5].top_p = 1.5;
  bad[6].top_p = std::nan("");
  bad[7].prefill_chunk = -1;
  for (const GenerateOptions& options : bad) {
    EXPECT_THROW(generate(decoder, some_tokens(), {}, options), c10::ValueError);
  }
  EXPECT_THROW(generate(decoder, {}, {}, {}), c10::ValueError);
  EXPECT_THROW(generate(decoder, at::zeros({3}, at::kLong), {}, {}), c10::ValueError);
  const GenerateOptions good{.max_new_tokens = 2};
  EXPECT_THROW(generate(decoder, some_tokens(), at::zeros({2, 7}), good), c10::ValueError);
  EXPECT_EQ(generate(decoder, some_tokens(), {}, good).sizes(), at::IntArrayRef({2, 9}));
}

TEST(Generate, GreedyTokensAreThoseOfForward) {
  for (const DecoderConfig& config : {llama(), neox()}) {
    const Decoder decoder = new_decoder(config);
    const at::Tensor all = generate(decoder, some_tokens(), {}, {.max_new_tokens = 9});
    at::Tensor tokens = some_tokens();
    for (int step = 0; step < 9; ++step) {
      const at::Tensor next = decoder.forward(tokens, {.last_only = true}).argmax(-1);
      tokens = at::cat({tokens, next}, 1);
    }
    EXPECT_TRUE(at::equal(all, tokens));
  }
}

}  // namespace
}  // namespace paperlab::nn
