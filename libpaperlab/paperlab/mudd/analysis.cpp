#include "paperlab/mudd/analysis.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cosine_similarity.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/zeros.h>
#include <c10/util/StringUtil.h>

#include <algorithm>
#include <functional>
#include <limits>
#include <memory>
#include <string>
#include <utility>

#include "paperlab/core/error.h"
#include "paperlab/mudd/model.h"
#include "paperlab/mudd/trace.h"
#include "paperlab/ops/rope.h"

namespace paperlab::mudd {
namespace {

constexpr std::int64_t kTokensAtOnce = 4096;  // bounds the memory of the observed tensors

void check_tokens(const char* function, const at::Tensor& tokens) {
  require<ValueError>(tokens.defined() && tokens.dim() == 2 && tokens.numel() > 0, function,
                      "tokens must be [N, T] with N, T >= 1",
                      tokens.defined() ? c10::str(tokens.sizes()) : "nothing");
}

// Some rows at a time.
std::vector<at::Tensor> parts_of(const at::Tensor& tokens) {
  return tokens.split(std::max<std::int64_t>(1, kTokensAtOnce / tokens.size(1)), 0);
}

// Runs the model over all tokens; `see` gets what its connections saw of each part.
void trace_all(const char* function, const MuddConfig& config, const nn::Decoder& model,
               const at::Tensor& tokens, const std::function<void(const Trace& trace)>& see) {
  check_tokens(function, tokens);
  check_traceable(function, config);
  const at::NoGradGuard no_grad;
  for (const at::Tensor& part : parts_of(tokens)) {
    see(trace(config, model, part));
  }
}

std::vector<const at::Tensor*> streams_of(const Streams& streams, bool are_several) {
  if (!are_several) {
    return {&streams.residual};
  }
  return {&streams.query, &streams.key, &streams.value, &streams.residual};
}

double total_of(const at::Tensor& x) { return x.sum(at::kDouble).item<double>(); }

// Full attention that counts the rows whose largest weight is beyond the sinks.
class CountingAttention final : public nn::Attention {
 public:
  // `is_sink` [B, T] belongs to the batch that is read; `active` gets a number for each layer.
  CountingAttention(std::shared_ptr<const nn::Attention> inner, const at::Tensor& is_sink,
                    std::vector<double>& active)
      : inner_(std::move(inner)), is_sink_(is_sink), active_(active) {}

  at::Tensor forward(const nn::AttentionInput& input, nn::LayerCache* cache) const override {
    const auto layer = static_cast<std::size_t>(input.layer);
    active_[layer] += num_active(input);
    return inner_->forward(input, cache);
  }

  std::unique_ptr<nn::LayerCache> new_cache(const nn::CacheShape& shape) const override {
    return inner_->new_cache(shape);
  }

 private:
  // The softmax keeps the order of the scores, so the largest score is the largest weight.
  double num_active(const nn::AttentionInput& input) const {
    const std::int64_t group = input.query.size(2) / input.key.size(2);
    const at::Tensor query = rotated(input.query, input).transpose(1, 2);
    const at::Tensor key = rotated(input.key, input).transpose(1, 2).repeat_interleave(group, 1);
    at::Tensor scores = at::matmul(query, key.transpose(2, 3));  // [B, H, T, T]
    const at::Tensor position = at::arange(scores.size(2), scores.options().dtype(at::kLong));
    scores.masked_fill_(position.unsqueeze(0).gt(position.unsqueeze(1)),
                        -std::numeric_limits<double>::infinity());
    const at::Tensor best = scores.argmax(3);  // [B, H, T]
    const at::Tensor on_sink = is_sink_.unsqueeze(1).expand(best.sizes()).gather(2, best);
    return static_cast<double>(on_sink.numel()) - total_of(on_sink);
  }

  static at::Tensor rotated(const at::Tensor& x, const nn::AttentionInput& input) {
    return input.cos.defined() ? ops::rope(x, input.cos, input.sin) : x;
  }

  std::shared_ptr<const nn::Attention> inner_;
  const at::Tensor& is_sink_;
  std::vector<double>& active_;
};

at::Tensor sinks_in(const at::Tensor& tokens, const Sinks& sinks) {
  at::Tensor is_sink = at::zeros(tokens.sizes(), tokens.options().dtype(at::kBool));
  is_sink.narrow(1, 0, std::min(sinks.num_initial, tokens.size(1))).fill_(true);
  for (const std::int64_t token : sinks.tokens) {
    is_sink.logical_or_(tokens.eq(token));
  }
  return is_sink;
}

// Sums over tokens, of what the weights are more than the first token's: squares of a constant
// weight would cancel in their last digits only.
struct WeightSums {
  at::Tensor first;    // [C, J] float64
  at::Tensor sum;      // [C, J] float64
  at::Tensor squares;  // [C, J] float64

  void add(const at::Tensor& weights) {
    if (!first.defined()) {
      first = weights.select(1, 0).select(1, 0).to(at::kDouble).cpu();
    }
    const at::Tensor w =
        weights.to(at::kDouble).sub(first.to(weights.device()).unsqueeze(1).unsqueeze(1));
    const at::Tensor of_part = w.sum({1, 2}).cpu();
    const at::Tensor squares_of_part = w.square().sum({1, 2}).cpu();
    sum = sum.defined() ? sum.add(of_part) : of_part;
    squares = squares.defined() ? squares.add(squares_of_part) : squares_of_part;
  }
};

ConnectionStats stats_of(const MuddConfig& config, std::int64_t layer, const WeightSums& sums,
                         const std::vector<double>& norms, double num_tokens) {
  ConnectionStats stats{layer, ways_of(config, layer), sources_of(config, layer), {}, {}};
  at::Tensor scale = at::zeros({static_cast<std::int64_t>(stats.sources.size())}, at::kDouble);
  auto* out = scale.mutable_data_ptr<double>();
  for (const std::int64_t source : stats.sources) {
    *out++ = norms[static_cast<std::size_t>(source)] / num_tokens;
  }
  const at::Tensor mean = sums.sum.div(num_tokens);
  stats.mean = mean.add(sums.first).mul_(scale);
  stats.std = sums.squares.div(num_tokens).sub_(mean.square()).clamp_min_(0.0).sqrt_().mul_(scale);
  return stats;
}

}  // namespace

InputCosines adjacent_input_cosine(const MuddConfig& config, const nn::Decoder& model,
                                   const at::Tensor& tokens) {
  const bool are_several = is_multiway(config.variant);
  const auto num_pairs = static_cast<std::size_t>(config.num_layers - 1);
  InputCosines result{are_several ? "QKVR" : "R", {}};
  result.cosines.assign(result.ways.size(), std::vector<double>(num_pairs));
  trace_all("adjacent_input_cosine", config, model, tokens, [&](const Trace& trace) {
    for (std::size_t pair = 0; pair < num_pairs; ++pair) {
      const auto before = streams_of(trace.streams[pair], are_several);
      const auto after = streams_of(trace.streams[pair + 1], are_several);
      for (std::size_t way = 0; way < before.size(); ++way) {
        result.cosines[way][pair] += total_of(at::cosine_similarity(*after[way], *before[way], -1));
      }
    }
  });
  for (auto& cosines : result.cosines) {
    for (double& cosine : cosines) {
      cosine /= static_cast<double>(tokens.numel());
    }
  }
  return result;
}

std::vector<double> head_activation_ratio(const MuddConfig& config, const nn::Decoder& model,
                                          const at::Tensor& tokens, const Sinks& sinks) {
  constexpr char kFunction[] = "head_activation_ratio";
  check_tokens(kFunction, tokens);
  require<ValueError>(sinks.num_initial >= 0, kFunction, "num_initial must be >= 0",
                      std::to_string(sinks.num_initial));
  const at::NoGradGuard no_grad;
  std::vector<at::Tensor> values;  // in a decoder of its own, whose attention may be exchanged
  for (const auto& parameter : model.parameters()) {
    values.push_back(*parameter.value);
  }
  const std::shared_ptr<nn::Decoder> decoder = make_decoder(config, std::move(values));
  at::Tensor is_sink;
  std::vector<double> active(static_cast<std::size_t>(config.num_layers));
  for (std::int64_t layer = 0; layer < config.num_layers; ++layer) {
    auto& attention = decoder->block(layer).attention;
    attention = std::make_shared<CountingAttention>(attention, is_sink, active);
  }
  for (const at::Tensor& part : parts_of(tokens)) {
    is_sink = sinks_in(part, sinks);
    decoder->hidden(part);
  }
  for (double& ratio : active) {
    ratio /= static_cast<double>(tokens.numel() * config.num_heads);
  }
  return active;
}

std::vector<ConnectionStats> rectified_connection_weights(const MuddConfig& config,
                                                          const nn::Decoder& model,
                                                          const at::Tensor& tokens) {
  std::vector<WeightSums> sums(static_cast<std::size_t>(config.num_layers));
  std::vector<double> norms(sums.size() + 1);
  trace_all("rectified_connection_weights", config, model, tokens, [&](const Trace& trace) {
    for (std::size_t state = 0; state < norms.size(); ++state) {
      norms[state] += total_of(at::linalg_vector_norm(trace.states[state], 2, -1));
    }
    for (std::size_t layer = 0; layer < sums.size(); ++layer) {
      if (trace.weights[layer].defined()) {
        sums[layer].add(trace.weights[layer]);
      }
    }
  });
  std::vector<ConnectionStats> stats;
  for (std::size_t layer = 0; layer < sums.size(); ++layer) {
    if (sums[layer].sum.defined()) {
      stats.push_back(stats_of(config, static_cast<std::int64_t>(layer), sums[layer], norms,
                               static_cast<double>(tokens.numel())));
    }
  }
  return stats;
}

}  // namespace paperlab::mudd
