#include "paperlab/nn/generate.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/argmax.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/div.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/softmax.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <numeric>
#include <utility>

#include "paperlab/core/rng.h"
#include "paperlab/nn/padding_internal.h"

namespace paperlab::nn {
namespace {

void check_options(const Decoder& decoder, const at::Tensor& tokens,
                   const GenerateOptions& options) {
  check_tokens("generate", tokens, decoder.config().vocab_size);
  TORCH_CHECK_VALUE(tokens.numel() >= 1, "generate: tokens must be [B, T] with B and T >= 1, got ",
                    tokens.sizes());
  TORCH_CHECK_VALUE(options.max_new_tokens >= 0, "generate: max_new_tokens must be >= 0, got ",
                    options.max_new_tokens);
  TORCH_CHECK_VALUE(options.temperature >= 0.0 && options.temperature < 1e30,
                    "generate: temperature must be finite and >= 0, got ", options.temperature);
  TORCH_CHECK_VALUE(options.top_p > 0.0 && options.top_p <= 1.0,
                    "generate: top_p must be in (0, 1], got ", options.top_p);
  TORCH_CHECK_VALUE(options.prefill_chunk >= 0, "generate: prefill_chunk must be >= 0, got ",
                    options.prefill_chunk);
  const std::int64_t room = decoder.config().max_positions - tokens.size(1);
  TORCH_CHECK_VALUE(options.max_new_tokens <= room, "generate: max_new_tokens must be at most ",
                    std::max<std::int64_t>(room, 0), " after ", tokens.size(1),
                    " tokens (max_positions ", decoder.config().max_positions, "), got ",
                    options.max_new_tokens);
}

// Logits [B, V] of the prompt's last token.
at::Tensor prefill(const Decoder& decoder, const Padding& prompt, const at::Tensor& mask,
                   std::int64_t chunk, Cache& cache) {
  const std::int64_t length = prompt.tokens.size(1);
  if (chunk == 0 || mask.defined()) {
    chunk = length;  // a mask comes with one call
  }
  at::Tensor logits;
  for (std::int64_t begin = 0; begin < length; begin += chunk) {
    const std::int64_t count = std::min(chunk, length - begin);
    logits = decoder.forward(prompt.tokens.narrow(1, begin, count),
                             {.attention_mask = mask, .cache = &cache, .last_only = true});
  }
  return logits.select(1, 0);
}

at::Tensor next_tokens(const at::Tensor& logits, const GenerateOptions& options,
                       std::int64_t step) {
  if (options.temperature == 0.0) {
    return at::argmax(logits, -1);
  }
  const at::Tensor exact = logits.to(at::kCPU, at::kDouble);  // waits for a device once
  at::Tensor tokens = at::empty({logits.size(0)}, at::kLong);
  for (std::int64_t row = 0; row < logits.size(0); ++row) {
    const double u = philox_uniform(options.seed, static_cast<std::uint64_t>(row),
                                    static_cast<std::uint64_t>(step));
    tokens[row].fill_(sample_token(exact[row], options.temperature, options.top_p, u));
  }
  return tokens;
}

// Which rows end with these tokens.
at::Tensor is_end(const at::Tensor& tokens, const std::vector<std::int64_t>& eos) {
  at::Tensor ends = tokens.ne(tokens);
  for (const std::int64_t token : eos) {
    ends = ends.logical_or(tokens.eq(token));
  }
  return ends;
}

at::Tensor generate_all(const Decoder& decoder, const at::Tensor& tokens,
                        const at::Tensor& attention_mask, const GenerateOptions& options) {
  const at::NoGradGuard no_grad;
  const Padding prompt = left_padding(tokens, attention_mask);
  at::Tensor mask;
  if (prompt.key_start.defined()) {
    TORCH_CHECK_VALUE(prompt.key_start.lt(tokens.size(1)).all().item<bool>(),
                      "generate: attention_mask must leave a token in each row");
    mask = at::arange(tokens.size(1), tokens.options()).ge(prompt.key_start.unsqueeze(1));
  }
  const auto cache = decoder.new_cache(tokens.size(0), tokens.size(1) + options.max_new_tokens);
  at::Tensor logits = prefill(decoder, prompt, mask, options.prefill_chunk, *cache);
  std::vector<at::Tensor> columns = {tokens};
  at::Tensor ended;
  for (std::int64_t step = 0; step < options.max_new_tokens; ++step) {
    at::Tensor next = next_tokens(logits, options, step).to(tokens.device());
    if (ended.defined()) {
      next = next.masked_fill(ended, options.pad.value_or(options.eos.front()));
    }
    columns.push_back(next.unsqueeze(1));
    const bool goes_on = !options.on_tokens || options.on_tokens(next.clone());
    if (!options.eos.empty()) {
      const at::Tensor ends = is_end(next, options.eos);
      ended = ended.defined() ? ended.logical_or(ends) : ends;
    }
    if (!goes_on || step + 1 == options.max_new_tokens ||
        (ended.defined() && ended.all().item<bool>())) {
      break;
    }
    // Padding may lie outside the vocabulary; what ended rows read does not matter.
    const at::Tensor read = ended.defined() ? next.masked_fill(ended, 0) : next;
    const ForwardOptions next_one{
        .cache = cache.get(), .last_only = true, .checks_ids = read.is_cpu()};
    logits = decoder.forward(read.unsqueeze(1), next_one).select(1, 0);
  }
  return at::cat(columns, 1);
}

}  // namespace

std::int64_t sample_token(const at::Tensor& logits, double temperature, double top_p, double u) {
  const at::Tensor exact = logits.to(at::kCPU, at::kDouble);
  const at::Tensor below_max = exact.sub(exact.max());  // so that no quotient is inf
  const at::Tensor p = at::softmax(at::div(below_max, temperature), -1).contiguous();
  const auto* probability = p.const_data_ptr<double>();
  std::vector<std::int64_t> order(static_cast<std::size_t>(p.numel()));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](std::int64_t a, std::int64_t b) { return probability[a] > probability[b]; });
  double kept = 0.0;  // of the tokens up to where the sum first reaches top_p
  std::size_t num_kept = 0;
  while (num_kept < order.size() && (num_kept == 0 || kept < top_p)) {
    kept += probability[order[num_kept++]];
  }
  double below = 0.0;
  for (std::size_t i = 0; i + 1 < num_kept; ++i) {
    below += probability[order[i]];
    if (u * kept < below) {
      return order[i];
    }
  }
  return order[num_kept - 1];
}

at::Tensor generate(const Decoder& decoder, const at::Tensor& tokens,
                    const at::Tensor& attention_mask, const GenerateOptions& options) {
  check_options(decoder, tokens, options);
  if (options.max_new_tokens == 0) {
    return tokens.clone();
  }
  return generate_all(decoder, tokens, attention_mask, options).clone();
}

}  // namespace paperlab::nn
