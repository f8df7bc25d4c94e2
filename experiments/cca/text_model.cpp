// A model of bytes: trained with full attention, then other forms of attention take its place, at
// once and after further training; what full attention looks at; other g and s without training.
#include <ATen/core/grad_mode.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/tensor.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <numbers>
#include <string>
#include <vector>

#include "experiments/cca/attentions.h"
#include "experiments/cca/models.h"
#include "experiments/cca/ranks.h"
#include "experiments/cca/rows.h"
#include "experiments/cca/study.h"
#include "experiments/cca/text.h"
#include "paperlab/cca/cost.h"
#include "paperlab/ops/rope.h"
#include "paperlab/train/loss.h"

namespace paperlab::experiments::cca {

namespace lib = paperlab::cca;

namespace {

constexpr double kTopShare = 0.1;
constexpr std::int64_t kWarmup = 20;
// Fig. 1's.
constexpr char kSentence[] =
    "LLM is a computational model capable of language generation or other natural language "
    "processing tasks";

at::TensorOptions tensors_of(const Config& config) {
  return at::TensorOptions()
      .dtype(config.dtype == "float64" ? at::kDouble : at::kFloat)
      .device(at::Device(config.device));
}

// Full attention that keeps the weights of the last query, [B, H, T] a layer.
class Watched final : public nn::Attention {
 public:
  at::Tensor forward(const nn::AttentionInput& input, nn::LayerCache* cache) const override {
    const std::int64_t last = input.query.size(1) - 1;
    const at::Tensor query = ops::rope(input.query, input.cos, input.sin).narrow(1, last, 1);
    const at::Tensor key = ops::rope(input.key, input.cos, input.sin);
    const double scale = 1.0 / std::sqrt(static_cast<double>(query.size(3)));
    const at::Tensor logits =
        at::matmul(query.permute({0, 2, 1, 3}), key.permute({0, 2, 3, 1})).mul(scale);
    weights_.push_back(at::softmax(logits.to(at::kDouble), -1).squeeze(2).cpu());
    return full_.forward(input, cache);
  }

  std::unique_ptr<nn::LayerCache> new_cache(const nn::CacheShape& shape) const override {
    return full_.new_cache(shape);
  }

  const std::vector<at::Tensor>& weights() const { return weights_; }

 private:
  nn::FullAttention full_;
  mutable std::vector<at::Tensor> weights_;  // one thread
};

std::vector<at::Tensor> last_weights(nn::Decoder& decoder, const at::Tensor& tokens) {
  const at::NoGradGuard no_grad;
  const auto watched = std::make_shared<Watched>();
  for (std::int64_t layer = 0; layer < decoder.config().num_layers; ++layer) {
    decoder.block(layer).attention = watched;
  }
  decoder.hidden(tokens);
  use(decoder, full_method());
  return watched->weights();
}

// What the last token's attention rests on, over layers, heads and contexts; and Fig. 1's sentence.
void look_at_attention(nn::Decoder& decoder, const Config& config, const at::Tensor& windows,
                       Outcome& outcome) {
  const at::Device device = decoder.parameters().front().value->device();
  const std::int64_t count = std::min(config.text_contexts, windows.size(0));
  const at::Tensor contexts = windows.narrow(0, 0, count).narrow(1, 0, config.text_length);
  double share = 0.0;
  const std::vector<at::Tensor> layers = last_weights(decoder, contexts.to(device));
  for (const at::Tensor& weights : layers) {
    const auto most =
        std::max<std::int64_t>(1, std::llround(kTopShare * static_cast<double>(weights.size(2))));
    share += std::get<0>(weights.topk(most, -1)).sum(-1).mean().item<double>();
  }
  outcome.scalars.emplace_back("attention of the last token on its top tenth of keys",
                               share / static_cast<double>(layers.size()));
  std::vector<std::int64_t> bytes(std::begin(kSentence), std::end(kSentence) - 1);
  if (std::ssize(bytes) > decoder.config().max_positions) {
    bytes.resize(static_cast<std::size_t>(decoder.config().max_positions));
  }
  const at::Tensor sentence = at::tensor(bytes).unsqueeze(0).to(device);
  std::vector<double> layer;
  std::vector<double> position;
  std::vector<double> weight;
  double number = 0.0;
  for (const at::Tensor& weights : last_weights(decoder, sentence)) {
    number += 1.0;
    const at::Tensor mean = weights.mean(1).reshape(-1).contiguous();
    for (std::int64_t i = 0; i < mean.numel(); ++i) {
      layer.push_back(number);
      position.push_back(static_cast<double>(i + 1));
      weight.push_back(mean.const_data_ptr<double>()[i]);
    }
  }
  outcome.series.push_back(
      {"sentence", {{"position", position}, {"layer", layer}, {"weight", weight}}});
}

std::string column_name(const std::string& bucket, const std::string& when) {
  return bucket + " " + when;
}

std::string bits_key(const std::string& bucket, const std::string& when) {
  return "bits per byte " + column_name(bucket, when);
}

std::string grid_key(std::int64_t group, std::int64_t window) {
  return "grid g=" + std::to_string(group) + " s=" + std::to_string(window);
}

std::vector<TextPart> parts_of(const Config& config, const std::vector<std::string>& folders) {
  std::vector<TextPart> parts;
  for (std::size_t i = 0; i < folders.size(); ++i) {
    parts.push_back({folders[i], Corpus::of_name(config.text_corpora[i]).domains});
  }
  return parts;
}

// All that the tasks of one run share.
class Bytes {
 public:
  Bytes(const Config& config, const std::vector<std::string>& tokens)
      : config_(config),
        text_(parts_of(config, tokens)),
        held_out_(text_.held_out(config.text_length, config.text_windows)) {}

  Base base() const {
    const std::int64_t steps = config_.text_steps + config_.text_tune_steps;
    return {steps, [this](std::uint64_t seed, const OnStep& on_step, Outcome& outcome) {
              const auto decoder = new_model(shape(), seed, tensors_of(config_));
              train(*decoder, seed, 0, config_.text_steps, config_.text_rate, on_step);
              Tensors values = values_of(*trainable(*decoder, values_of(*decoder)));
              look_at_attention(*decoder, config_, held_out_, outcome);
              note(*decoder, "at once", outcome);
              train(*decoder, seed, config_.text_steps, config_.text_tune_steps,
                    config_.text_tune_rate, on_step);
              values.push_back(note(*decoder, "tuned", outcome));
              return values;
            }};
  }

  Fork fork(const Method& method, bool has_grid) const {
    return {
        method.name, config_.text_tune_steps,
        [this, method, has_grid](std::uint64_t seed, const Tensors& base, const OnStep& on_step) {
          const auto decoder = trainable(*new_model(shape(), 0, tensors_of(config_)),
                                         {base.begin(), base.end() - 1});
          use(*decoder, method);
          Outcome outcome;
          note(*decoder, "at once", outcome);
          train(*decoder, seed, config_.text_steps, config_.text_tune_steps, config_.text_tune_rate,
                on_step);
          const at::Tensor less = note(*decoder, "tuned", outcome).sub(base.back());
          outcome.scalars.emplace_back("tuned, less full: mean", less.mean().item<double>());
          outcome.scalars.emplace_back(
              "tuned, less full: standard error",
              less.std().item<double>() / std::sqrt(static_cast<double>(less.numel())));
          if (has_grid) {
            note_grid(*decoder, outcome);
          }
          return outcome;
        }};
  }

  std::string last_bucket() const {
    return bucket_name(config_.text_buckets, config_.text_buckets.size() - 2);
  }

 private:
  Shape shape() const {
    return {.vocab_size = text_.vocab_size(),
            .num_layers = config_.text_layers,
            .d_model = config_.text_width,
            .num_heads = config_.text_heads,
            .max_positions = config_.text_length};
  }

  // Batches `begin` and later of the seed, whatever the attention.
  void train(nn::Decoder& decoder, std::uint64_t seed, std::int64_t begin, std::int64_t steps,
             double rate, const OnStep& on_step) const {
    const Recipe recipe{.learning_rate = rate, .warmup_steps = std::min(kWarmup, steps)};
    Minimizer minimizer(all_of(decoder, recipe), recipe);
    data::Sampler sampler = text_.sampler(config_.text_length, seed);
    sampler.seek(begin * config_.text_batch, serial_executor());
    const at::Device device(config_.device);
    for (std::int64_t step = 0; step < steps; ++step) {
      const at::Tensor tokens = next_windows(sampler, config_.text_batch);
      minimizer.step(train::next_token_loss(decoder, tokens.to(device)));
      on_step();
    }
  }

  at::Tensor last_bits(const Buckets& buckets) const {
    return buckets.back().second.div(std::numbers::ln2);
  }

  Buckets measure(nn::Decoder& decoder) const {
    return by_position(token_nats(decoder, held_out_), config_.text_buckets, 0);
  }

  // Bits per byte by position; those of each window in the last bucket are returned.
  at::Tensor note(nn::Decoder& decoder, const std::string& when, Outcome& outcome) const {
    const Buckets buckets = measure(decoder);
    for (const auto& [bucket, nats] : buckets) {
      outcome.scalars.emplace_back(bits_key(bucket, when),
                                   nats.mean().item<double>() / std::numbers::ln2);
    }
    return last_bits(buckets);
  }

  // Other g and s, no training.
  void note_grid(nn::Decoder& decoder, Outcome& outcome) const {
    for (const std::int64_t group : config_.text_grid_groups) {
      for (const std::int64_t window : config_.text_grid_windows) {
        use(decoder, core_method("", group, window));
        outcome.scalars.emplace_back(grid_key(group, window),
                                     last_bits(measure(decoder)).mean().item<double>());
      }
    }
  }

  const Config& config_;
  Text text_;
  at::Tensor held_out_;
};

constexpr char kCore[] = "CCA";

std::vector<Method> methods_of(const Config& config) {
  const std::int64_t group = config.text_group;
  const std::int64_t window = config.text_window;
  const Method core = core_method(kCore, group, window);
  std::vector<Method> methods = {
      core,
      core_method("mean pooling", group, window, lib::Pooling::kMean),
      core_method("max pooling", group, window, lib::Pooling::kMax),
      window_method(window),
      sinks_method(4, window),
      lm_infinite_method(std::min<std::int64_t>(10, window / 2), window)};
  const std::int64_t budget = keys_of_last(config.text_length, core.core);
  if (budget != window) {
    methods.push_back(window_method(budget));
  }
  return methods;
}

// Rows of the table: full attention first, then the methods.
void record_table(const Config& config, Run& run, const Study& study,
                  const std::vector<Method>& methods) {
  std::vector<std::string> names = {"base"};
  names.reserve(1 + methods.size());
  for (const Method& method : methods) {
    names.push_back(method.name);
  }
  Columns columns = {{"row", row_numbers(names.size())}};
  for (std::size_t i = 0; i + 1 < config.text_buckets.size(); ++i) {
    const std::string bucket = bucket_name(config.text_buckets, i);
    for (const std::string when : {"at once", "tuned"}) {
      std::vector<double> bits;
      bits.reserve(names.size());
      for (const std::string& name : names) {
        bits.push_back(study.mean(config.text_seeds, name, bits_key(bucket, when)));
      }
      // Counted, not named by positions, so that figures and tables hold for every preset.
      columns.emplace_back("bucket " + std::to_string(i + 1) + " " + when, bits);
    }
  }
  run.series("text model", columns);
}

// Rank correlation of pairs and quality over (g, s).
double record_flexibility(const Config& config, Run& run, const Study& study) {
  std::vector<double> group;
  std::vector<double> window;
  std::vector<double> pairs;
  std::vector<double> bits;
  std::vector<double> quality;
  for (const std::int64_t g : config.text_grid_groups) {
    for (const std::int64_t s : config.text_grid_windows) {
      lib::Options options;
      options.group_size = g;
      options.window = s;
      group.push_back(static_cast<double>(g));
      window.push_back(static_cast<double>(s));
      pairs.push_back(static_cast<double>(lib::cost(config.text_length, options).pairs));
      bits.push_back(study.mean(config.text_seeds, kCore, grid_key(g, s)));
      quality.push_back(-bits.back());
    }
  }
  run.series("flexibility",
             {{"group", group}, {"window", window}, {"pairs", pairs}, {"bits_per_byte", bits}});
  return rank_correlation(pairs, quality);
}

}  // namespace

void text_model(const Config& config, Run& run, const std::vector<std::string>& tokens) {
  const Bytes bytes(config, tokens);
  const std::vector<Method> methods = methods_of(config);
  std::vector<Fork> forks;
  forks.reserve(methods.size());
  for (const Method& method : methods) {
    forks.push_back(bytes.fork(method, method.name == kCore));
  }
  Study study(run, "text", config.step_s);
  study.complete(config.text_seeds, bytes.base(), forks);
  record_table(config, run, study, methods);
  const auto mean = [&](const std::string& task, const std::string& what) {
    return study.mean(config.text_seeds, task, what);
  };
  const std::string window = window_method(config.text_window).name;
  const std::string bucket = bytes.last_bucket();
  const double gap = mean(window, "tuned, less full: mean");
  // Seeds share their windows: the mean of the standard errors is an upper bound.
  const double error = mean(window, "tuned, less full: standard error");
  const double recovered = 1.0 - mean(kCore, "tuned, less full: mean") / gap;
  const double repaired =
      mean(kCore, bits_key(bucket, "at once")) - mean(kCore, bits_key(bucket, "tuned"));
  const double correlation = record_flexibility(config, run, study);
  run.scalar("text: window less full, bits per byte", gap);
  run.scalar("text: window less full, by its standard error", gap / error);
  run.scalar("text: part of that gap that CCA recovers", recovered);
  run.scalar("text: rank correlation of pairs and quality", correlation);
  run.claim("C12", mean("base", "attention of the last token on its top tenth of keys"));
  constexpr double kLeastGap = 0.03;
  constexpr double kLeastErrors = 4.0;
  if (gap >= kLeastGap && gap >= kLeastErrors * error) {
    run.claim("C1f", recovered);
    run.claim("C1g", repaired);
    run.claim("C10b", correlation);
  }
}

}  // namespace paperlab::experiments::cca
