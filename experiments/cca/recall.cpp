// Retrieval beyond the window: a model that finds typed needles by full attention gets another form
// of attention, without new parameters, and is trained on with it.
#include "experiments/cca/recall.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/cross_entropy_loss.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "experiments/cca/attentions.h"
#include "experiments/cca/models.h"
#include "experiments/cca/rows.h"
#include "experiments/cca/study.h"
#include "paperlab/core/rng.h"
#include "paperlab/ops/linear.h"

namespace paperlab::experiments::cca {

namespace lib = paperlab::cca;

namespace {

constexpr std::uint64_t kTrainStream = 1000;
constexpr std::uint64_t kTuneStream = 1001;
constexpr std::uint64_t kTestStream = 1002;
constexpr std::uint64_t kReadOutStream = 1003;
constexpr std::uint64_t kTestSeed = 0;  // one test for all models
constexpr std::int64_t kAtOnce = 64;    // sequences of a measurement, and tokens:
constexpr std::int64_t kTokensAtOnce = 65536;
constexpr std::size_t kDepths = 8;  // a text of 64 has as many slots
constexpr Recipe kRecipe{.learning_rate = 3e-3, .warmup_steps = 20};

at::TensorOptions tensors_of(const Config& config) {
  return at::TensorOptions()
      .dtype(config.dtype == "float64" ? at::kDouble : at::kFloat)
      .device(at::Device(config.device));
}

// A decoder whose state at the last 8 tokens is read by one matrix [8, E].
class Finder {
 public:
  Finder(std::shared_ptr<nn::Decoder> decoder, at::Tensor read_out)
      : decoder_(std::move(decoder)), read_out_(std::move(read_out)) {}

  nn::Decoder& decoder() { return *decoder_; }

  at::Tensor answers(const at::Tensor& tokens) const {  // [B, 8, 8]
    const at::Tensor state = decoder_->hidden(tokens);
    const std::int64_t length = state.size(1);
    return ops::linear(state.narrow(1, length - kNeedleTypes, kNeedleTypes), read_out_);
  }

  at::Tensor loss(const NeedleBatch& batch) const {
    const at::Device device = read_out_.device();
    const at::Tensor logits = answers(batch.tokens.to(device));
    return at::cross_entropy_loss(logits.reshape({-1, kNeedleValues}),
                                  batch.values.reshape(-1).to(device));
  }

  Minimizer minimizer() const { return {all_of(*decoder_, kRecipe, read_out_), kRecipe}; }

  Tensors values() const {
    Tensors all = values_of(*decoder_);
    all.push_back(read_out_.detach());
    return all;
  }

 private:
  std::shared_ptr<nn::Decoder> decoder_;
  at::Tensor read_out_;
};

Finder new_finder(const Config& config, std::uint64_t seed) {
  const std::int64_t longest =
      *std::max_element(config.recall_lengths.begin(), config.recall_lengths.end());
  const Shape shape{.vocab_size = kNeedleVocab,
                    .num_layers = 2,
                    .d_model = config.recall_width,
                    .num_heads = 2,
                    .max_positions = std::max(longest, config.recall_length)};
  at::Tensor read_out = at::empty({kNeedleValues, shape.d_model}, at::kDouble);
  auto* const values = read_out.mutable_data_ptr<double>();
  for (std::int64_t i = 0; i < read_out.numel(); ++i) {
    const double uniform = philox_uniform(seed, kReadOutStream, static_cast<std::uint64_t>(i));
    values[i] = (2.0 * uniform - 1.0) / 8.0;
  }
  const at::TensorOptions options = tensors_of(config);
  return {new_model(shape, seed, options), read_out.to(options).requires_grad_()};
}

Finder finder_of(const Config& config, const Tensors& values) {
  Finder fresh = new_finder(config, 0);
  const Tensors of_decoder(values.begin(), values.end() - 1);
  return {trainable(fresh.decoder(), of_decoder), values.back().detach().clone().requires_grad_()};
}

// Right answers by the needle's slot.
struct Found {
  std::vector<double> right;
  std::vector<double> asked;

  double accuracy() const {
    double found = 0.0;
    double all = 0.0;
    for (std::size_t i = 0; i < right.size(); ++i) {
      found += right[i];
      all += asked[i];
    }
    return found / all;
  }
};

Found measure(const Finder& finder, const Config& config, std::int64_t length) {
  const at::NoGradGuard no_grad;
  Found found;
  found.right.resize(static_cast<std::size_t>(num_needle_slots(length)));
  found.asked.resize(found.right.size());
  const std::int64_t at_once = std::clamp<std::int64_t>(kTokensAtOnce / length, 1, kAtOnce);
  for (std::int64_t begin = 0; begin < config.recall_sequences; begin += at_once) {
    const std::int64_t count = std::min(at_once, config.recall_sequences - begin);
    const NeedleBatch batch = needle_batch(kTestSeed, kTestStream, begin, count, length);
    const at::Tensor answers =
        finder.answers(batch.tokens.to(at::Device(config.device))).argmax(-1).cpu();
    const at::Tensor right = answers.eq(batch.values);
    for (std::int64_t i = 0; i < right.numel(); ++i) {
      const auto slot = static_cast<std::size_t>(batch.slots.const_data_ptr<std::int64_t>()[i]);
      found.asked[slot] += 1.0;
      found.right[slot] += right.const_data_ptr<bool>()[i] ? 1.0 : 0.0;
    }
  }
  return found;
}

std::string after(std::int64_t steps) {
  return steps == 0 ? "accuracy at once" : "accuracy after " + std::to_string(steps) + " steps";
}

// Accuracy by depth, in eighths of the text before the fillers at its end, and by length.
void record_grid(const Finder& finder, const Config& config, Outcome& outcome) {
  std::vector<double> lengths;
  std::vector<double> depths;
  std::vector<double> accuracy;
  for (const std::int64_t length : config.recall_lengths) {
    const Found found = measure(finder, config, length);
    outcome.scalars.emplace_back("accuracy at length " + std::to_string(length), found.accuracy());
    std::vector<double> right(kDepths);
    std::vector<double> asked(kDepths);
    for (std::size_t slot = 0; slot < found.right.size(); ++slot) {
      right[slot * kDepths / found.right.size()] += found.right[slot];
      asked[slot * kDepths / found.right.size()] += found.asked[slot];
    }
    for (std::size_t depth = 0; depth < kDepths; ++depth) {
      lengths.push_back(static_cast<double>(length));
      depths.push_back(static_cast<double>(depth + 1));
      accuracy.push_back(right[depth] / std::max(1.0, asked[depth]));
    }
  }
  outcome.series.push_back(
      {"needles", {{"length", lengths}, {"depth", depths}, {"accuracy", accuracy}}});
}

Base base_of(const Config& config) {
  return {
      config.recall_steps, [&config](std::uint64_t seed, const OnStep& on_step, Outcome& out) {
        const Finder finder = new_finder(config, seed);
        Minimizer minimizer = finder.minimizer();
        for (std::int64_t step = 0; step < config.recall_steps; ++step) {
          minimizer.step(finder.loss(needle_batch(seed, kTrainStream, step * config.recall_batch,
                                                  config.recall_batch, config.recall_length)));
          on_step();
        }
        out.scalars.emplace_back(after(0),
                                 measure(finder, config, config.recall_length).accuracy());
        record_grid(finder, config, out);
        return finder.values();
      }};
}

Fork fork_of(const Config& config, const Method& method) {
  return {
      method.name, config.recall_tune_steps.back(),
      [&config, method](std::uint64_t seed, const Tensors& base, const OnStep& on_step) {
        Finder finder = finder_of(config, base);
        use(finder.decoder(), method);
        Outcome outcome;
        const auto note = [&](std::int64_t steps) {
          outcome.scalars.emplace_back(after(steps),
                                       measure(finder, config, config.recall_length).accuracy());
        };
        note(0);
        Minimizer minimizer = finder.minimizer();
        std::int64_t step = 0;
        for (const std::int64_t until : config.recall_tune_steps) {
          for (; step < until; ++step) {
            minimizer.step(finder.loss(needle_batch(seed, kTuneStream, step * config.recall_batch,
                                                    config.recall_batch, config.recall_length)));
            on_step();
          }
          note(until);
        }
        record_grid(finder, config, outcome);
        return outcome;
      }};
}

std::string group_name(std::int64_t group) { return "CCA g=" + std::to_string(group); }

std::vector<Method> methods_of(const Config& config) {
  const std::int64_t window = config.recall_window;
  const std::int64_t least = config.recall_groups.front();
  std::vector<Method> methods;
  methods.reserve(config.recall_groups.size());
  for (const std::int64_t group : config.recall_groups) {
    methods.push_back(core_method(group_name(group), group, window));
  }
  methods.push_back(core_method("mean pooling", least, window, lib::Pooling::kMean));
  methods.push_back(core_method("max pooling", least, window, lib::Pooling::kMax));
  methods.push_back(window_method(window));
  methods.push_back(sinks_method(4, window));
  return methods;
}

void record_table(const Config& config, Run& run, const Study& study,
                  const std::vector<Method>& methods) {
  Columns columns = {{"row", row_numbers(methods.size())}};
  std::vector<std::int64_t> steps = {0};
  steps.insert(steps.end(), config.recall_tune_steps.begin(), config.recall_tune_steps.end());
  for (const std::int64_t count : steps) {
    std::vector<double> accuracy;
    accuracy.reserve(methods.size());
    for (const Method& method : methods) {
      accuracy.push_back(study.mean(config.recall_seeds, method.name, after(count)));
    }
    // By stage, not by steps, so that figures and tables hold for every preset.
    columns.emplace_back("stage_" + std::to_string(columns.size() - 1), accuracy);
  }
  run.series("recall", columns);
}

}  // namespace

void recall(const Config& config, Run& run) {
  const std::vector<Method> methods = methods_of(config);
  std::vector<Fork> forks;
  forks.reserve(methods.size());
  for (const Method& method : methods) {
    forks.push_back(fork_of(config, method));
  }
  Study study(run, "recall", config.step_s);
  study.complete(config.recall_seeds, base_of(config), forks);
  record_table(config, run, study, methods);
  const auto mean = [&](const std::string& task, std::int64_t steps) {
    return study.mean(config.recall_seeds, task, after(steps));
  };
  const std::int64_t last = config.recall_tune_steps.back();
  const std::string core = group_name(config.recall_groups.front());
  run.claim("C1c", mean("base", 0));
  run.claim("C1d", mean(core, last));
  run.claim("C9c", mean(window_method(config.recall_window).name, last));
  double least = INFINITY;
  for (std::size_t i = 0; i + 1 < config.recall_groups.size(); ++i) {
    least = std::min(least, mean(group_name(config.recall_groups[i]), last) -
                                mean(group_name(config.recall_groups[i + 1]), last));
  }
  const double gained = mean(core, last) - mean(core, 0);
  run.scalar("recall: least gap between neighbouring group sizes", least);
  run.scalar("recall: what fine-tuning adds to the first group size", gained);
  if (config.recall_seeds.size() >= 3) {
    run.claim("C1e", gained);
    run.claim("C10c", least);
  }
}

}  // namespace paperlab::experiments::cca
