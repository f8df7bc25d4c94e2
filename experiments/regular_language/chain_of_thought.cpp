// F7: parity by chain of thought, with and without the even-pairs regularizer.
#include <cmath>
#include <numbers>
#include <numeric>
#include <string>

#include "experiments/regular_language/rows.h"

namespace paperlab::experiments::regular_language {
namespace {

// Share of base strings whose free-running chain ends in their parity.
double free_running_accuracy(const rl::Model& model, int base_length) {
  std::vector<std::uint8_t> strings;
  std::vector<int> parity;
  for (unsigned i = 0; i < (1U << static_cast<unsigned>(base_length)); ++i) {
    for (int l = 0; l < base_length; ++l) {
      strings.push_back(static_cast<std::uint8_t>((i >> static_cast<unsigned>(l)) & 1U));
    }
    parity.push_back(std::accumulate(strings.end() - base_length, strings.end(), 0) % 2);
  }
  const std::vector<int> last = rl::chain_of_thought(model, strings, base_length, false);
  double correct = 0.0;
  for (std::size_t n = 0; n < last.size(); ++n) {
    correct += last[n] == parity[n] ? 1.0 : 0.0;
  }
  return correct / static_cast<double>(last.size());
}

// Other ranges of the regularizer: even pairs of lengths 1..reg, 0 for none.
void regularizers(const Config& config, Run& run) {
  std::vector<double> reg;
  std::vector<double> loss;
  std::vector<double> accuracy;
  for (const int length :
       {0, 1, config.base_length - 1, config.base_length, 2 * config.base_length - 2}) {
    rl::TrainOptions options = options_for(config, rl::Task::kParityCot, config.num_steps);
    options.method = rl::Method::kStrings;
    options.regularizer_length = length;
    const rl::History history = rl::train(options);
    reg.push_back(length);
    loss.push_back(history.loss.back());
    accuracy.push_back(history.accuracy.back());
  }
  run.series("F7 regularizers",
             {{"regularizer_length", reg}, {"loss", loss}, {"accuracy", accuracy}});
  run.claim("C8a", std::abs(loss[0] - (config.base_length - 1) * std::numbers::ln2));
  run.claim("C8b", accuracy[2]);
  run.claim("C8c", loss[4]);
}

}  // namespace

void chain_of_thought(const Config& config, Run& run) {
  rl::TrainOptions options = options_for(config, rl::Task::kParityCot, config.num_steps);
  options.method = rl::Method::kStrings;
  options.record = every_step(config.num_steps);
  const rl::History history = rl::train(options);
  std::vector<std::pair<std::string, std::vector<double>>> columns = {
      {"step", thinned(history, to_double(history.step))},
      {"loss", thinned(history, history.loss)},
      {"accuracy", thinned(history, history.accuracy)}};
  for (int l = 1; l <= options.max_length; ++l) {
    std::vector<double> u;
    u.reserve(history.u.size());
    for (const std::vector<double>& record : history.u) {
      u.push_back(record[2 * static_cast<std::size_t>(l - 1)]);
    }
    columns.emplace_back("u" + std::to_string(l), thinned(history, u));
  }
  run.series("F7 chain of thought", columns);
  compare_digits(
      run, "F7 loss", history, history.loss,
      {{100, 3.6697909323}, {600, 1.7253452580}, {1000, .9441481812}, {10000, .0104522995}});
  run.scalar("F7 accuracy is 1 for good from step",
             static_cast<double>(rl::perfect_from(history.step, history.accuracy)));

  options.record = merged(log_steps(0, config.num_steps, 40), {300, 600}, config.num_steps);
  options.record_w = true;
  const rl::History sparse = rl::train(options);
  std::vector<double> accuracy;
  accuracy.reserve(sparse.step.size());
  for (std::size_t r = 0; r < sparse.step.size(); ++r) {
    accuracy.push_back(free_running_accuracy(model_at(options, sparse, r), config.base_length));
  }
  run.series("F7 free-running accuracy",
             {{"step", to_double(sparse.step)}, {"accuracy", accuracy}});
  run.claim("C2c", accuracy.back());
  regularizers(config, run);
}

}  // namespace paperlab::experiments::regular_language
