#include "paperlab/cca/decoder_attention.h"

#include <ATen/ops/equal.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/tensor.h>
#include <c10/util/Exception.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "paperlab/cca/attention.h"
#include "paperlab/cca/rows.h"
#include "paperlab/core/error.h"
#include "tests/paperlab/nn/decoder_cases.h"

namespace paperlab::cca {
namespace {

constexpr Options kOptions = {.group_size = 2, .window = 3};

nn::DecoderConfig without_windows() {
  nn::DecoderConfig config = nn::llama();
  config.windows.clear();
  config.max_positions = config.rope.max_positions = 300;
  return config;
}

nn::Decoder applied(const Options& options = kOptions) {
  nn::Decoder decoder = nn::new_decoder(without_windows());
  apply(decoder, options);
  return decoder;
}

TEST(DecoderAttention, AppliesAndIsRemoved) {
  nn::Decoder decoder = nn::new_decoder(without_windows());
  const at::Tensor full = decoder.forward(nn::some_tokens(13));
  const auto original = decoder.block(1).attention;
  apply(decoder, kOptions);
  const at::Tensor core = decoder.forward(nn::some_tokens(13));
  nn::expect_close(core.narrow(1, 0, 4), full.narrow(1, 0, 4));
  EXPECT_GT(core.sub(full).narrow(1, 4, 9).abs().amax(-1).min().item<double>(), 1e-9);
  apply(decoder, {.group_size = 5, .window = 20});
  EXPECT_TRUE(at::equal(decoder.forward(nn::some_tokens(13)), full));
  remove(decoder);
  EXPECT_EQ(decoder.block(1).attention, original);
  remove(decoder);
  EXPECT_TRUE(at::equal(decoder.forward(nn::some_tokens(13)), full));
}

TEST(DecoderAttention, RefusesOptionsAndWindowsAndChangesNothing) {
  nn::Decoder decoder = nn::new_decoder(nn::llama());  // windows 0 and 3
  const at::Tensor before = decoder.forward(nn::some_tokens());
  EXPECT_THROW(apply(decoder, kOptions), ValueError);
  EXPECT_THROW(apply(decoder, {.group_size = 0}), ValueError);
  EXPECT_TRUE(at::equal(decoder.forward(nn::some_tokens()), before));
  const auto attention =
      std::make_shared<DecoderAttention>(kOptions, std::make_shared<nn::FullAttention>());
  decoder.block(1).attention = attention;  // whose layer has a window
  EXPECT_THROW(decoder.forward(nn::some_tokens()), ValueError);
  decoder.block(1).attention = attention->original();
  EXPECT_TRUE(at::equal(decoder.forward(nn::some_tokens()), before));
  EXPECT_THROW(DecoderAttention(kOptions, nullptr), ValueError);
}

// A caller may set Cache::length back: one call always, further where raw keys are still there.
TEST(DecoderAttention, TheCacheGoesBackOrSaysSo) {
  const nn::Decoder decoder = applied();
  const at::Tensor tokens = nn::some_tokens(20);
  const at::Tensor whole = decoder.forward(tokens);
  const auto cache = decoder.new_cache(2, 20);
  const auto read = [&](std::int64_t begin, std::int64_t end) {
    return decoder.forward(tokens.slice(1, begin, end), {.cache = cache.get()});
  };
  read(0, 6);
  for (std::int64_t end = 7; end <= 12; ++end) {
    read(6, end);
    cache->length = 6;
  }
  nn::expect_close(read(6, 15), whole.narrow(1, 6, 9));
  cache->length = 9;  // the call from 6 on is undone in part
  nn::expect_close(read(9, 18), whole.narrow(1, 9, 9));
  cache->length = 0;
  nn::expect_close(read(0, 20), whole);
}

TEST(DecoderAttention, GoingBackTooFarIsRefused) {
  const nn::Decoder decoder = applied();
  const at::Tensor tokens = nn::some_tokens(201);
  const auto cache = decoder.new_cache(2, 300);
  decoder.forward(tokens.slice(1, 0, 200), {.cache = cache.get()});
  decoder.forward(tokens.slice(1, 200, 201), {.cache = cache.get()});
  cache->length = 100;  // its raw keys went with the first call
  EXPECT_THROW(decoder.forward(tokens.slice(1, 100, 101), {.cache = cache.get()}), ValueError);
  EXPECT_EQ(cache->length, 100);
  cache->length = 202;
  EXPECT_THROW(decoder.forward(tokens.slice(1, 0, 1), {.cache = cache.get()}), ValueError);
  cache->length = 200;
  nn::expect_close(decoder.forward(tokens.slice(1, 200, 201), {.cache = cache.get()}),
                   decoder.forward(tokens, {.last_only = true}));
}

// q, k and v [2, H, length, 4] in float64.
std::vector<at::Tensor> some_heads(std::int64_t length) {
  const auto doubles = at::TensorOptions().dtype(at::kDouble);
  return {at::randn({2, 4, length, 4}, doubles), at::randn({2, 2, length, 4}, doubles),
          at::randn({2, 2, length, 4}, doubles)};
}

at::Tensor longs(std::int64_t a, std::int64_t b) { return at::tensor({a, b}, at::kLong); }

TEST(AttentionOfRows, IsAttentionOfTheTokensThatCount) {
  const std::vector<at::Tensor> x = some_heads(17);
  const Rows rows = {longs(2, 5), longs(17, 14), {}};
  for (const Pooling pooling : {Pooling::kAttention, Pooling::kMax}) {
    Options options = {.group_size = 3, .window = 2, .pooling = pooling};
    for (options.keep_first = 0; options.keep_first < 3; ++options.keep_first) {
      const at::Tensor out = attention_of_rows(x[0], x[1], x[2], options, rows);
      for (std::int64_t row = 0; row < 2; ++row) {
        const std::int64_t begin = row == 0 ? 2 : 5;
        const std::int64_t end = row == 0 ? 17 : 14;
        const auto part = [&](const at::Tensor& of) {
          return of.slice(0, row, row + 1).slice(2, begin, end);
        };
        nn::expect_close(part(out), attention(part(x[0]), part(x[1]), part(x[2]), options).out);
        EXPECT_EQ(out[row].slice(1, 0, begin).abs().max().item<double>(), 0.0);
      }
    }
  }
}

TEST(AttentionOfRows, WhatPaddingHoldsChangesNothing) {
  std::vector<at::Tensor> x = some_heads(17);
  const Rows rows = {longs(2, 5), longs(17, 14), {}};
  const Options options = {.group_size = 3, .window = 2, .keep_first = 1};
  const at::Tensor before = attention_of_rows(x[0], x[1], x[2], options, rows);
  for (at::Tensor& of : x) {
    of = of.clone();
    of[0].slice(1, 0, 2).fill_(1e30);
    of[1].slice(1, 0, 5).fill_(1e30);
    of[1].slice(1, 14, 17).fill_(-1e30);
  }
  const at::Tensor after = attention_of_rows(x[0], x[1], x[2], options, rows);
  EXPECT_TRUE(at::equal(after[0], before[0]));
  EXPECT_TRUE(at::equal(after[1].slice(1, 0, 14), before[1].slice(1, 0, 14)));
}

TEST(AttentionOfRows, TheScaleIsOfBothLogits) {
  const std::vector<at::Tensor> x = some_heads(17);
  const Options options = {.group_size = 3, .window = 2};
  const Rows rows = {{}, {}, 0.25};
  nn::expect_close(attention_of_rows(x[0], x[1], x[2], options, rows),
                   attention(x[0].mul(0.5), x[1], x[2], options).out);
}

// Of the last queries alone: right where the first evaluator is among them, or none is needed.
TEST(AttentionOfRows, PastQueriesMayBeMissing) {
  const std::vector<at::Tensor> x = some_heads(17);
  for (const Pooling pooling : {Pooling::kAttention, Pooling::kMean}) {
    const Options options = {.group_size = 3, .window = 2, .pooling = pooling, .keep_first = 1};
    const at::Tensor whole = attention(x[0], x[1], x[2], options).out;
    for (std::int64_t past = 0; past <= 17; ++past) {
      const at::Tensor query = x[0].slice(2, past, 17);
      if (pooling == Pooling::kMean || past <= 3) {  // token 3 is the first evaluator
        nn::expect_close(attention_of_rows(query, x[1], x[2], options, {}), whole.slice(2, past));
      } else {
        EXPECT_THROW(attention_of_rows(query, x[1], x[2], options, {}), c10::ValueError);
      }
    }
    const Rows late = {longs(12, 12), {}, {}};  // 5 tokens: none behind n + s + g
    EXPECT_NO_THROW(attention_of_rows(x[0].slice(2, 16, 17), x[1], x[2], options, late));
  }
}

TEST(AttentionOfRows, RefusesArguments) {
  const std::vector<at::Tensor> x = some_heads(5);
  EXPECT_THROW(attention_of_rows(x[0], x[1], x[2], {.group_size = 0}, {}), ValueError);
  EXPECT_THROW(attention_of_rows({}, x[1], x[2], kOptions, {}), c10::ValueError);
  EXPECT_THROW(attention_of_rows(x[0][0], x[1], x[2], kOptions, {}), c10::ValueError);
  EXPECT_THROW(attention_of_rows(x[0], x[1], x[2].slice(2, 1), kOptions, {}), c10::ValueError);
  EXPECT_THROW(attention_of_rows(x[0], x[1].slice(2, 1), x[2].slice(2, 1), kOptions, {}),
               c10::ValueError);
  EXPECT_THROW(attention_of_rows(x[0], x[1].to(at::kFloat), x[2], kOptions, {}), c10::TypeError);
}

}  // namespace
}  // namespace paperlab::cca
