#include "paperlab/eval/perplexity.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/log_softmax.h>
#include <ATen/ops/one_hot.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros.h>
#include <c10/util/Exception.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "paperlab/nn/init.h"

namespace paperlab::eval {
namespace {

constexpr std::int64_t kVocabulary = 13;

at::Tensor text(std::int64_t length) {
  return at::arange(length, at::kLong).square().remainder(kVocabulary);
}

// The state is [token, position in the window]; the logits are a function of both.
struct Probe {
  std::vector<std::vector<std::int64_t>> read;  // the tokens of each window
  std::int64_t most_rows = 0;

  ScoredModel model() {
    return {[this](const at::Tensor& tokens) {
              EXPECT_FALSE(at::GradMode::is_enabled());
              EXPECT_EQ(tokens.size(0), 1);
              const at::Tensor row = tokens[0].contiguous();
              const auto* data = row.const_data_ptr<std::int64_t>();
              read.emplace_back(data, data + row.numel());
              const at::Tensor place = at::arange(row.numel(), at::kLong);
              return at::stack({row, place}, 1).unsqueeze(0).to(at::kDouble);
            },
            [this](const at::Tensor& state) {
              most_rows = std::max(most_rows, state.size(0));
              return logits(state);
            }};
  }

  static at::Tensor logits(const at::Tensor& state) {
    const at::Tensor ids = at::arange(kVocabulary, at::kDouble);
    return (state.select(1, 0).unsqueeze(1) * 0.3 * ids + state.select(1, 1).unsqueeze(1)).sin();
  }
};

// -ln p by the rule, token by token: the first window that reaches it.
void expect_by_rule(std::int64_t length, std::int64_t context, std::int64_t stride) {
  SCOPED_TRACE(std::to_string(length) + " " + std::to_string(context) + " " +
               std::to_string(stride));
  Probe probe;
  const at::Tensor tokens = text(length);
  const WindowOptions options{context, stride, {}};
  const at::Tensor nll = token_nll(probe.model(), tokens, options);
  const at::Tensor read = tokens_read(length, options);
  ASSERT_EQ(nll.sizes(), at::IntArrayRef({length - 1}));
  ASSERT_EQ(nll.scalar_type(), at::kDouble);
  for (std::int64_t token = 1; token < length; ++token) {
    std::int64_t begin = 0;
    while (begin + context < token) {
      begin += stride;
    }
    EXPECT_EQ(read[token - 1].item<std::int64_t>(), token - begin);
    const at::Tensor state =
        at::stack({tokens[token - 1], at::zeros({}, at::kLong) + (token - 1 - begin)})
            .to(at::kDouble)
            .unsqueeze(0);
    const at::Tensor log_p = at::log_softmax(Probe::logits(state), -1);
    const double wanted = -log_p[0][tokens[token].item<std::int64_t>()].item<double>();
    EXPECT_NEAR(nll[token - 1].item<double>(), wanted, 1e-14);
  }
  for (std::size_t w = 0; w < probe.read.size(); ++w) {
    const auto begin = static_cast<std::int64_t>(w) * stride;
    EXPECT_EQ(probe.read[w].size(), std::min(context, length - 1 - begin));
  }
}

TEST(TokenNll, EachTokenIsScoredByTheFirstWindowThatReachesIt) {
  for (const std::int64_t length : {2, 3, 4, 5, 7, 12, 13}) {
    for (const std::int64_t context : {1, 2, 3, 5, 6, 11, 12, 13, 40}) {
      for (std::int64_t stride = 1; stride <= std::min<std::int64_t>(context, 13); ++stride) {
        expect_by_rule(length, context, stride);
      }
    }
  }
}

TEST(TokenNll, LogitsOfFewTokensExistAtATime) {
  expect_by_rule(700, 699, 699);
  Probe probe;
  token_nll(probe.model(), text(700), {699, 699, {}});
  EXPECT_LE(probe.most_rows, 128);
}

TEST(TokenNll, WindowsAreReportedAndMayStopIt) {
  Probe probe;
  std::vector<std::int64_t> counts;
  const at::Tensor whole = token_nll(probe.model(), text(12), {5, 3, [&](std::int64_t n) {
                                                                 counts.push_back(n);
                                                                 return true;
                                                               }});
  EXPECT_EQ(counts, (std::vector<std::int64_t>{5, 8, 11}));
  const at::Tensor part =
      token_nll(probe.model(), text(12), {5, 3, [](std::int64_t n) { return n < 8; }});
  EXPECT_TRUE(at::equal(part.narrow(0, 0, 8), whole.narrow(0, 0, 8)));
  EXPECT_TRUE(part.narrow(0, 8, 3).isnan().all().item<bool>());
}

TEST(TokenNll, WrongArgumentsAreRefused) {
  Probe probe;
  const ScoredModel model = probe.model();
  const WindowOptions good{4, 2, {}};
  EXPECT_THROW(token_nll(model, {}, good), c10::ValueError);
  EXPECT_THROW(token_nll(model, text(1), good), c10::ValueError);
  EXPECT_THROW(token_nll(model, text(4).view({2, 2}), good), c10::ValueError);
  EXPECT_THROW(token_nll(model, text(4).to(at::kInt), good), c10::TypeError);
  EXPECT_THROW(token_nll(model, text(9), {0, 1, {}}), c10::ValueError);
  EXPECT_THROW(token_nll(model, text(9), {4, 0, {}}), c10::ValueError);
  EXPECT_THROW(token_nll(model, text(9), {4, 5, {}}), c10::ValueError);
  EXPECT_THROW(tokens_read(1, good), c10::ValueError);
  EXPECT_THROW(tokens_read(9, {4, 5, {}}), c10::ValueError);
  EXPECT_TRUE(probe.read.empty());
}

nn::Decoder small_decoder() {
  nn::DecoderConfig config;
  config.vocab_size = kVocabulary;
  config.num_layers = 1;
  config.d_model = config.d_ff = 8;
  config.num_heads = config.num_kv_heads = 2;
  config.head_dim = 4;
  config.max_positions = 16;
  config.rope.rotary_dim = 4;
  config.rope.max_positions = 16;
  config.init_std = 0.5;
  return {config, nn::Family::kLlama,
          nn::initial_values(config, nn::Family::kLlama, nn::Init::kNormal, 1, at::kDouble)};
}

TEST(TokenNll, ADecodersAreThoseOfItsLogits) {
  nn::Decoder decoder = small_decoder();
  const at::Tensor tokens = text(12);
  const at::Tensor logits = decoder.forward(tokens.narrow(0, 0, 11).unsqueeze(0))[0];
  const at::Tensor log_p = at::log_softmax(logits, -1);
  const at::Tensor wanted = -log_p.gather(1, tokens.narrow(0, 1, 11).unsqueeze(1)).squeeze(1);
  const at::Tensor nll = token_nll(decoder, tokens, {16, 16, {}});
  EXPECT_LE((nll - wanted).abs().max().item<double>(), 1e-12);
  EXPECT_TRUE(at::equal(nll, token_nll(decoder, tokens, {16, 16, {}})));
}

TEST(TokenNll, ATokenOutsideTheVocabularyIsRefusedBeforeAnyWork) {
  nn::Decoder decoder = small_decoder();
  int calls = 0;
  decoder.add_linear_hook([&](const std::string&, const at::Tensor&) { ++calls; });
  for (const std::int64_t wrong : {kVocabulary, std::int64_t{-1}}) {
    const at::Tensor tokens = text(12);
    tokens[11] = wrong;
    EXPECT_THROW(token_nll(decoder, tokens, {4, 4, {}}), c10::ValueError);
  }
  EXPECT_EQ(calls, 0);
}

}  // namespace
}  // namespace paperlab::eval
