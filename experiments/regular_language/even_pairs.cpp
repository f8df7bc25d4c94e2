// F1 (loss), F2 (token scores), F3 (attention) and F8 (zero-shot chain of thought) of even pairs.
#include <algorithm>
#include <numeric>
#include <string>

#include "experiments/regular_language/rows.h"

namespace paperlab::experiments::regular_language {
namespace {

std::vector<double> column(const rl::History& history, std::size_t index) {
  std::vector<double> values;
  values.reserve(history.u.size());
  for (const std::vector<double>& u : history.u) {
    values.push_back(u[index]);
  }
  return values;
}

// Attention of strings of one length and label; all of them have the same.
struct ClassAttention {
  std::vector<double> positive;
  std::vector<double> negative;
};

ClassAttention class_attention(const rl::Model& model, int length) {
  std::vector<std::uint8_t> tokens(static_cast<std::size_t>(length), 0);
  ClassAttention out;
  out.positive = rl::attention(model, tokens);
  tokens.front() = 1;
  out.negative = rl::attention(model, tokens);
  return out;
}

bool is_largest(const std::vector<double>& values, std::size_t index) {
  return std::max_element(values.begin(), values.end()) - values.begin() ==
         static_cast<std::ptrdiff_t>(index);
}

// All strings of a length, row-major.
std::vector<std::uint8_t> all_strings(int length) {
  std::vector<std::uint8_t> tokens;
  for (unsigned i = 0; i < (1U << static_cast<unsigned>(length)); ++i) {
    for (int l = 0; l < length; ++l) {
      tokens.push_back(static_cast<std::uint8_t>((i >> static_cast<unsigned>(l)) & 1U));
    }
  }
  return tokens;
}

}  // namespace

void loss(const Config& config, Run& run) {
  rl::TrainOptions options = options_for(config, rl::Task::kEvenPairs, config.num_steps);
  options.method = rl::Method::kStrings;  // all 126 strings, no use of symmetry
  options.record = every_step(config.num_steps);
  const rl::History history = rl::train(options);
  run.series("F1 even pairs", {{"step", thinned(history, to_double(history.step))},
                               {"loss", thinned(history, history.loss)},
                               {"accuracy", thinned(history, history.accuracy)},
                               {"min_margin", thinned(history, history.min_margin)}});
  compare_digits(
      run, "F1 loss", history, history.loss,
      {{100, 3.6506885837}, {600, 1.1023490617}, {1000, .3429662304}, {10000, .0102277086}});
  run.scalar("F1 accuracy is 1 from step",
             static_cast<double>(rl::perfect_from(history.step, history.accuracy)));
  run.claim("C1", history.accuracy.back());
}

void token_scores(const Config& config, Run& run) {
  rl::TrainOptions options = options_for(config, rl::Task::kEvenPairs, config.num_steps);
  options.method = rl::Method::kStrings;
  options.record = every_step(config.num_steps);
  const rl::History history = rl::train(options);
  std::vector<std::pair<std::string, std::vector<double>>> columns = {
      {"step", thinned(history, to_double(history.step))}};
  double not_rising = 0.0;
  double not_falling = 0.0;
  for (int l = 1; l <= config.max_length; ++l) {
    const std::vector<double> u = column(history, 2 * static_cast<std::size_t>(l - 1));
    for (std::size_t t = 1; t < u.size(); ++t) {
      not_rising += l == 1 && u[t] <= u[t - 1] ? 1.0 : 0.0;
      not_falling += l > 1 && t > 3 && u[t] >= u[t - 1] ? 1.0 : 0.0;
    }
    columns.emplace_back("u" + std::to_string(l), thinned(history, u));
  }
  run.series("F2 token scores", columns);
  const std::ptrdiff_t early = find_step(history, 10);
  if (early >= 0) {
    const double eta_t = 10.0 * config.learning_rate;
    run.claim("C4a", history.u[static_cast<std::size_t>(early)][0] / eta_t);
    if (config.max_length > 1) {
      run.claim("C4b", history.u[static_cast<std::size_t>(early)][2] / (eta_t * eta_t));
    }
  }
  run.claim("C4c", not_rising);
  run.claim("C4d", not_falling);
}

void attention(const Config& config, Run& run) {
  rl::TrainOptions options = options_for(config, rl::Task::kEvenPairs, config.num_steps);
  options.method = rl::Method::kStrings;
  options.record_w = true;
  options.record =
      merged(log_steps(0, config.num_steps, 40), {100, 300, 600, 1000}, config.num_steps);
  const rl::History history = rl::train(options);
  std::vector<double> first_positive;
  std::vector<double> first_negative;
  std::vector<double> second_negative;
  double cases = 0.0;
  double as_claimed = 0.0;
  double least_positive = 1.0;
  double most_negative = 0.0;
  for (std::size_t r = 0; r < history.step.size(); ++r) {
    const std::int64_t step = history.step[r];
    for (int length = 2; length <= config.max_length; ++length) {
      const ClassAttention phi = class_attention(model_at(options, history, r), length);
      if (step == 300 || step == 600 || step == 1000) {
        cases += 2.0;
        as_claimed += is_largest(phi.positive, 0) ? 1.0 : 0.0;
        as_claimed += is_largest(phi.negative, 1) ? 1.0 : 0.0;
      }
      if (step == 1000) {
        least_positive = std::min(least_positive, phi.positive[0]);
        most_negative = std::max(most_negative, phi.negative[0]);
      }
      if (length == config.max_length) {
        first_positive.push_back(phi.positive[0]);
        first_negative.push_back(phi.negative[0]);
        second_negative.push_back(phi.negative[1]);
      }
    }
  }
  run.series("F3 attention", {{"step", to_double(history.step)},
                              {"first_positive", first_positive},
                              {"first_negative", first_negative},
                              {"second_negative", second_negative}});
  if (find_step(history, 1000) >= 0) {
    run.claim("C5a", as_claimed / cases);
    run.claim("C5b", least_positive);
    run.claim("C5c", most_negative);
  }
}

void zero_shot(const Config& config, Run& run) {
  rl::TrainOptions options = options_for(config, rl::Task::kEvenPairs, config.num_steps);
  options.record_w = true;
  options.record = merged(log_steps(0, config.num_steps, 40), {200, 300}, config.num_steps);
  const rl::History history = rl::train(options);
  std::vector<std::pair<std::string, std::vector<double>>> columns = {
      {"step", to_double(history.step)}};
  double least = 1.0;
  for (int length = 2; length <= config.max_length; ++length) {
    const std::vector<std::uint8_t> strings = all_strings(length);
    const std::size_t count = strings.size() / static_cast<std::size_t>(length);
    std::vector<double> accuracy;
    for (std::size_t r = 0; r < history.step.size(); ++r) {
      const std::vector<int> parity =
          rl::chain_of_thought(model_at(options, history, r), strings, length, true);
      double correct = 0.0;
      for (std::size_t n = 0; n < count; ++n) {
        const auto* string = strings.data() + n * static_cast<std::size_t>(length);
        correct += std::accumulate(string, string + length, 0) % 2 == parity[n] ? 1.0 : 0.0;
      }
      accuracy.push_back(correct / static_cast<double>(count));
      least = history.step[r] >= 300 ? std::min(least, accuracy.back()) : least;
    }
    columns.emplace_back("length" + std::to_string(length), accuracy);
  }
  run.series("F8 zero-shot accuracy", columns);
  if (history.step.back() >= 300) {
    run.claim("C2b", least);
  }
}

}  // namespace paperlab::experiments::regular_language
