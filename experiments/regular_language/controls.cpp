// Controls beyond the paper: no chain of thought, other optimizers, embeddings and initializations.
#include <algorithm>
#include <string>

#include "experiments/regular_language/rows.h"

namespace paperlab::experiments::regular_language {
namespace {

struct Outcome {
  double loss;
  double accuracy;
  double cosine;
};

Outcome outcome(rl::TrainOptions options) {
  options.record_w = true;
  const rl::History history = rl::train(options);
  const MarginOfFeatures best =
      margin_of_features(model_at(options, history, 0), rl::training_strings(options));
  return {history.loss.back(), history.accuracy.back(), best.cosine};
}

void record(Run& run, const std::string& name, const Outcome& outcome) {
  run.scalar("control " + name + ": loss", outcome.loss);
  run.scalar("control " + name + ": accuracy", outcome.accuracy);
  run.scalar("control " + name + ": cosine with max margin", outcome.cosine);
}

void optimizers(const Config& config, Run& run) {
  rl::TrainOptions options = options_for(config, rl::Task::kEvenPairs, config.num_steps);
  options.method = rl::Method::kStrings;
  options.optimizer = rl::Optimizer::kHeavyBall;
  record(run, "heavy ball", outcome(options));
  options.optimizer = rl::Optimizer::kNormalizedGd;
  options.learning_rate = config.learning_rate / 2.0;
  record(run, "normalized gradient descent", outcome(options));
  options.optimizer = rl::Optimizer::kAdam;
  options.learning_rate = config.learning_rate / 10.0;
  options.boost_steps = 0;
  record(run, "Adam", outcome(options));
  options.optimizer = rl::Optimizer::kSignGd;
  options.num_steps = 2 * config.num_steps;
  options.record = {options.num_steps};
  const Outcome sign = outcome(options);
  record(run, "sign gradient descent", sign);
  run.claim("C6l", sign.cosine);
}

void embeddings(const Config& config, Run& run) {
  rl::TrainOptions options = options_for(config, rl::Task::kEvenPairs, config.num_steps);
  options.method = rl::Method::kStrings;
  options.record = every_step(config.num_steps);
  const auto perfect = [&] {
    const rl::History history = rl::train(options);
    return static_cast<double>(rl::perfect_from(history.step, history.accuracy));
  };
  options.embedding = rl::Embedding::kTokenPosition;
  run.scalar("control token + position embedding: accuracy is 1 from step", perfect());
  options.embedding = rl::Embedding::kGaussian;
  options.num_steps = std::min<std::int64_t>(config.num_steps, 2000);
  options.record = every_step(options.num_steps);
  options.embedding_dim = 64;
  run.scalar("control Gaussian embedding of 64: accuracy is 1 from step", perfect());
}

// Onset of logarithmic growth of even pairs under other schedules of the attention step.
void schedules(const Config& config, Run& run) {
  const auto onset = [&](const std::string& name, auto change) {
    rl::TrainOptions options = options_for(config, rl::Task::kEvenPairs, config.num_steps);
    options.record = every_step(config.num_steps);
    change(options);
    run.scalar("control " + name + ": onset of logarithmic growth", onset_of(rl::train(options)));
  };
  onset("no boost", [](rl::TrainOptions& options) { options.boost_steps = 0; });
  onset("boost for ever",
        [](rl::TrainOptions& options) { options.boost_steps = options.num_steps; });
  onset("boost for 300 steps", [](rl::TrainOptions& options) { options.boost_steps = 300; });
  onset("boost by lambda^2", [](rl::TrainOptions& options) {
    options.boost = options.attention_scale * options.attention_scale;
  });
  onset("each string the same weight", [](rl::TrainOptions& options) {
    options.method = rl::Method::kStrings;
    options.uniform_weights = true;
  });
}

}  // namespace

void controls(const Config& config, Run& run) {
  rl::TrainOptions direct = options_for(config, rl::Task::kParity, config.rate_steps);
  direct.method = rl::Method::kStrings;
  const rl::History history = rl::train(direct);
  run.scalar("control parity without chain of thought: loss", history.loss.back());
  run.claim("C2a", history.accuracy.back());
  optimizers(config, run);
  embeddings(config, run);
  for (const rl::Task task : {rl::Task::kEvenPairs, rl::Task::kParityCot}) {
    rl::TrainOptions random = options_for(config, task, config.num_steps);
    random.method = rl::Method::kStrings;
    random.init_std = 0.01;
    run.scalar(std::string("control random initialization, ") + name_of(task) + ": loss",
               rl::train(random).loss.back());
  }
  rl::TrainOptions chain_alone = options_for(config, rl::Task::kParityCot, config.num_steps);
  chain_alone.method = rl::Method::kStrings;
  chain_alone.regularizer_length = 0;
  chain_alone.init_std = 0.01;
  run.scalar("control chain of thought alone from N(0, 0.01^2): loss",
             rl::train(chain_alone).loss.back());
  schedules(config, run);
}

}  // namespace paperlab::experiments::regular_language
