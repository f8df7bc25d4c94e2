#include "paperlab/eval/perplexity.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/gather.h>
#include <ATen/ops/log_softmax.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

namespace paperlab::eval {
namespace {

// Logits of this many tokens exist at a time: 25 MB of float32 at a vocabulary of 49,152.
constexpr std::int64_t kRows = 128;

// What window `begin` scores: tokens first..last (inclusive), last having been read from last - 1.
struct Window {
  std::int64_t begin;
  std::int64_t first;
  std::int64_t last;
};

void check_tokens(const at::Tensor& tokens, std::int64_t vocab_size) {
  const auto least = tokens.min().item<std::int64_t>();
  const auto most = tokens.max().item<std::int64_t>();
  TORCH_CHECK_VALUE(least >= 0 && most < vocab_size, "perplexity: tokens must be 0..",
                    vocab_size - 1, " (vocab_size ", vocab_size, "), got token ",
                    least < 0 ? least : most);
}

std::vector<Window> windows(std::int64_t num_tokens, const WindowOptions& options) {
  TORCH_CHECK_VALUE(num_tokens >= 2, "perplexity: tokens must be at least 2, got ", num_tokens);
  TORCH_CHECK_VALUE(options.context >= 1, "perplexity: context must be >= 1, got ",
                    options.context);
  TORCH_CHECK_VALUE(options.stride >= 1 && options.stride <= options.context,
                    "perplexity: stride must be in 1..context (", options.context, "), got ",
                    options.stride);
  std::vector<Window> all;
  std::int64_t first = 1;
  for (std::int64_t begin = 0; first < num_tokens; begin += options.stride) {
    const std::int64_t last = std::min(begin + options.context, num_tokens - 1);
    all.push_back({begin, first, last});
    first = last + 1;
  }
  return all;
}

// Of tokens [n] given the states [n, E] before them.
void score(const ScoredModel& model, const at::Tensor& state, const at::Tensor& tokens,
           const at::Tensor& nll) {
  for (std::int64_t row = 0; row < tokens.size(0); row += kRows) {
    const std::int64_t count = std::min(kRows, tokens.size(0) - row);
    at::Tensor logits = model.logits(state.narrow(0, row, count));
    check_tokens(tokens, logits.size(1));
    if (logits.scalar_type() != at::kDouble) {
      logits = logits.to(at::kFloat);
    }
    const at::Tensor target = tokens.narrow(0, row, count).to(logits.device()).unsqueeze(1);
    const at::Tensor log_p = at::gather(at::log_softmax(logits, -1), 1, target).squeeze(1);
    nll.narrow(0, row, count).copy_(log_p.to(at::kDouble).neg());
  }
}

}  // namespace

at::Tensor token_nll(const ScoredModel& model, const at::Tensor& tokens,
                     const WindowOptions& options) {
  TORCH_CHECK_VALUE(tokens.defined() && tokens.dim() == 1, "perplexity: tokens must be [N], got ",
                    tokens.sizes());
  TORCH_CHECK_TYPE(tokens.scalar_type() == at::kLong, "perplexity: tokens must be int64, got ",
                   tokens.scalar_type());
  const at::NoGradGuard no_grad;
  const std::vector<Window> all = windows(tokens.size(0), options);
  at::Tensor nll = at::full({tokens.size(0) - 1}, std::numeric_limits<double>::quiet_NaN(),
                            at::TensorOptions(at::kDouble));
  for (const auto& [begin, first, last] : all) {
    const at::Tensor state =
        model.state(tokens.narrow(0, begin, last - begin).unsqueeze(0)).select(0, 0);
    const std::int64_t count = last - first + 1;
    score(model, state.narrow(0, first - 1 - begin, count), tokens.narrow(0, first, count),
          nll.narrow(0, first - 1, count));
    if (options.on_window && !options.on_window(last)) {
      break;
    }
  }
  return nll;
}

at::Tensor token_nll(nn::Decoder& decoder, const at::Tensor& tokens, const WindowOptions& options) {
  if (tokens.defined() && tokens.numel() > 0 && tokens.scalar_type() == at::kLong) {
    check_tokens(tokens, decoder.config().vocab_size);
    const std::int64_t longest = std::min(options.context, tokens.numel() - 1);
    TORCH_CHECK_VALUE(longest <= decoder.config().max_positions,
                      "perplexity: context must be at most ", decoder.config().max_positions,
                      " (max_positions), got ", options.context);
  }
  const at::Device device = decoder.parameters().front().value->device();
  const nn::ForwardOptions checked{.checks_ids = false};
  return token_nll({[&](const at::Tensor& x) { return decoder.hidden(x.to(device), checked); },
                    [&](const at::Tensor& state) { return decoder.logits(state); }},
                   tokens, options);
}

at::Tensor tokens_read(std::int64_t num_tokens, const WindowOptions& options) {
  const std::vector<Window> all = windows(num_tokens, options);
  at::Tensor read = at::empty({num_tokens - 1}, at::kLong);
  auto* out = read.mutable_data_ptr<std::int64_t>();
  for (const auto& [begin, first, last] : all) {
    for (std::int64_t token = first; token <= last; ++token) {
      out[token - 1] = token - begin;
    }
  }
  return read;
}

}  // namespace paperlab::eval
