// What follows from the partition of tokens alone: the cache's size by length, which is counted in
// the cache itself, and that each query reaches each earlier token exactly once.
#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/ones.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "experiments/cca/attentions.h"
#include "experiments/cca/models.h"
#include "experiments/cca/rows.h"
#include "paperlab/cca/attention.h"
#include "paperlab/cca/baselines.h"
#include "paperlab/cca/cache.h"
#include "paperlab/cca/cost.h"
#include "paperlab/cca/partition.h"
#include "paperlab/nn/init.h"

namespace paperlab::experiments::cca {

namespace lib = paperlab::cca;

namespace {

constexpr double kGiB = 1073741824.0;
constexpr double kBytesPerToken = 2.0 * 32.0 * 4096.0 * 2.0;  // LLaMA2-7B, 16 bit
constexpr std::int64_t kHeadDim = 2;
constexpr std::int64_t kChunk = 4096;
// The figure's: 4096 tokens, 10 global ones among them.
constexpr lib::baselines::LmInfiniteOptions kLmInfinite = {
    .global_tokens = 10, .local = 4086, .limit = 4086};
constexpr std::uint64_t kSeed = 1;

lib::Options options_of(const Config& config) {
  lib::Options options;
  options.group_size = config.group_size;
  options.window = config.window;
  return options;
}

// Vectors in the cache after each of the lengths, which ascend.
std::vector<double> stored_vectors(const Config& config, Run& run) {
  const at::NoGradGuard no_grad;
  lib::KvCache cache(options_of(config));
  std::vector<double> stored;
  for (const std::int64_t length : config.cache_lengths) {
    while (cache.length() < length) {
      const std::int64_t count = std::min(kChunk, length - cache.length());
      const auto stream = static_cast<std::uint64_t>(cache.length());
      const at::Tensor x =
          nn::normal_values({1, 1, count, kHeadDim}, 1.0, kSeed, stream, at::kFloat);
      cache.prefill(x, x, x);
      run.progress(cache.length(), config.cache_lengths.back());
    }
    stored.push_back(static_cast<double>(cache.stored_vectors()));
  }
  return stored;
}

// Tokens that the last query reads: the values on which its result depends.
double read_by_lm_infinite(std::int64_t length) {
  const auto normal = [length](std::uint64_t stream) {
    return nn::normal_values({1, 1, length, kHeadDim}, 1.0, kSeed, stream, at::kFloat);
  };
  const at::Tensor value = normal(3).requires_grad_();
  const auto result = lib::baselines::lm_infinite(normal(1), normal(2), value, kLmInfinite);
  result.out.select(2, length - 1).sum().backward();
  return value.grad().select(3, 0).ne(0.0).sum().item<double>();
}

// Tokens for which the decoder's cache of full attention has room.
double held_by_full(std::int64_t length) {
  const Shape shape{
      .vocab_size = 4, .num_layers = 1, .d_model = 2, .num_heads = 1, .max_positions = length};
  const at::TensorOptions options = at::TensorOptions().dtype(at::kFloat);
  const std::int64_t bytes_of_token = 2 * shape.d_model * 4;
  return static_cast<double>(new_model(shape, kSeed, options)->new_cache(1, length)->num_bytes()) /
         static_cast<double>(bytes_of_token);
}

// Tokens that some row of the mask stands for other than once, or that lie after it.
std::int64_t misrepresented(std::int64_t length, const lib::Options& options) {
  const at::Tensor mask = lib::mask(length, options).contiguous();
  const std::int64_t columns = mask.size(1);
  const std::int64_t core = columns - length;
  std::int64_t wrong = 0;
  for (std::int64_t row = 0; row < length; ++row) {
    std::vector<int> times(static_cast<std::size_t>(length));
    const bool* const sees = mask.const_data_ptr<bool>() + row * columns;
    for (std::int64_t column = 0; column < columns; ++column) {
      const bool is_core = column < core;
      const std::int64_t first = is_core ? column * options.group_size : column - core;
      const std::int64_t count = is_core ? options.group_size : 1;
      for (std::int64_t token = first; sees[column] && token < first + count; ++token) {
        times[static_cast<std::size_t>(token)] += 1;
      }
    }
    for (std::int64_t token = 0; token < length; ++token) {
      wrong += times[static_cast<std::size_t>(token)] == (token <= row ? 1 : 0) ? 0 : 1;
    }
  }
  return wrong;
}

}  // namespace

void kv_cache(const Config& config, Run& run) {
  const std::vector<double> stored = stored_vectors(config, run);
  // Of the paper's figure; other lengths, g or s have no published point.
  const std::vector<std::pair<std::int64_t, double>> published = {
      {4096, 0.625}, {8192, 0.75}, {16384, 1.0}, {32768, 1.5}, {65536, 2.5}, {131072, 4.5}};
  std::vector<double> length;
  std::vector<double> core;
  std::vector<double> full;
  std::vector<double> lm_infinite;
  double unlike = 0.0;
  double unlike_full = 0.0;  // 2 .. 64 GiB: 0.5 MiB a token
  for (std::size_t i = 0; i < stored.size(); ++i) {
    const std::int64_t tokens = config.cache_lengths[i];
    const lib::Cost cost = lib::cost(tokens, options_of(config));
    length.push_back(static_cast<double>(tokens));
    core.push_back(stored[i] * kBytesPerToken / kGiB);
    full.push_back(held_by_full(tokens) * kBytesPerToken / kGiB);
    lm_infinite.push_back(read_by_lm_infinite(tokens) * kBytesPerToken / kGiB);
    unlike_full += full.back() == static_cast<double>(tokens) / 2048.0 ? 0.0 : 1.0;
    unlike += stored[i] == static_cast<double>(cost.cache_vectors) ? 0.0 : 1.0;
    for (const auto& [at, gib] : published) {
      unlike += at == tokens && core.back() != gib ? 1.0 : 0.0;
    }
  }
  run.series("cache", {{"length", length},
                       {"CCA", core},
                       {"full", full},
                       {"LM-Infinite", lm_infinite},
                       {"stored_vectors", stored}});
  run.claim("C6a", 100.0 * (1.0 - core.back() / full.back()));
  run.claim("C6b", unlike);
  run.claim("C6c", *std::max_element(lm_infinite.begin(), lm_infinite.end()));
  run.claim("C6d", unlike_full);
  double most = 0.0;  // vectors beyond L / g + s
  for (std::size_t i = 0; i < stored.size(); ++i) {
    most = std::max(most, stored[i] - length[i] / static_cast<double>(config.group_size) -
                              static_cast<double>(config.window));
  }
  run.claim("C8a", most);
}

void partition(const Config& config, Run& run) {
  double wrong = 0.0;
  double unlike = 0.0;
  for (const std::int64_t group : {1, 2, 3, 4, 7, 16}) {
    for (const std::int64_t window : {0, 1, 5, 16, 18}) {
      for (const std::int64_t length : {1, 7, 23, 64, 97}) {
        lib::Options options;
        options.group_size = group;
        options.window = window;
        wrong += static_cast<double>(misrepresented(length, options));
        const double pairs = static_cast<double>(lib::cost(length, options).pairs);
        unlike += pairs == lib::mask(length, options).sum().item<double>() ? 0.0 : 1.0;
      }
    }
  }
  run.claim("C9a", wrong);
  run.claim("C8c", unlike);
  constexpr std::int64_t kLength = 96;
  const at::Tensor query = nn::normal_values({1, 2, kLength, 8}, 1.0, kSeed, 1, at::kDouble);
  const at::Tensor key = nn::normal_values({1, 2, kLength, 8}, 1.0, kSeed, 2, at::kDouble);
  const at::Tensor weights = lib::effective_attention(query, key, 4, 16);
  const at::Tensor is_earlier = at::ones({kLength, kLength}, at::kBool).tril();
  run.claim("C9b", weights.masked_select(is_earlier).min().item<double>());
  const Shape shape{
      .vocab_size = 16, .num_layers = 2, .d_model = 16, .num_heads = 2, .max_positions = kLength};
  const auto decoder = new_model(shape, kSeed, at::TensorOptions().dtype(at::kDouble));
  const auto before = static_cast<double>(decoder->parameters().size());
  use(*decoder, core_method("CCA", config.group_size, config.window));
  run.claim("C1b", static_cast<double>(decoder->parameters().size()) - before);
}

}  // namespace paperlab::experiments::cca
