#include <algorithm>
#include <cmath>

#include "experiments/regular_language/rows.h"

namespace paperlab::experiments::regular_language {

rl::TrainOptions options_for(const Config& config, rl::Task task, std::int64_t num_steps) {
  rl::TrainOptions options;
  options.task = task;
  options.learning_rate = config.learning_rate;
  options.attention_scale = config.attention_scale;
  options.boost_steps = config.boost_steps;
  options.num_steps = num_steps;
  options.base_length = config.base_length;
  options.max_length =
      task == rl::Task::kParityCot ? 2 * config.base_length - 2 : config.max_length;
  options.seed = config.seed;
  options.record = {num_steps};
  return options;
}

rl::Device device_of(const Config& config) {
  return config.device == "cuda" ? rl::Device::kCuda : rl::Device::kCpu;
}

namespace {

void check(bool holds, const std::string& required, const std::string& got) {
  require<ValueError>(holds, "regular-language", required, got);
}

// Sizes of the rows of every string; then whether their device is there.
void validate_every_string(const Config& config) {
  check(config.device == "cpu" || config.device == "cuda", "device must be cpu or cuda",
        config.device);
  check(config.all_lengths.size() == 2, "all_lengths must be two numbers",
        std::to_string(config.all_lengths.size()));
  check(config.all_chain_length >= 2, "all_chain_length must be >= 2",
        std::to_string(config.all_chain_length));
  for (const int length : config.all_lengths) {
    rl::TrainOptions options = options_for(config, rl::Task::kEvenPairs, config.all_steps);
    options.method = rl::Method::kFold;
    options.max_length = length;
    options.device = device_of(config);
    rl::validate(options);
  }
  rl::TrainOptions chain = options_for(config, rl::Task::kParityCot, config.all_chain_steps);
  chain.method = rl::Method::kFold;
  chain.base_length = config.all_chain_length;
  chain.max_length = 2 * chain.base_length - 2;
  rl::validate(chain);
}

}  // namespace

void Config::validate() const {
  for (const rl::Task task : {rl::Task::kEvenPairs, rl::Task::kParityCot}) {
    rl::TrainOptions options = options_for(*this, task, num_steps);
    options.method = rl::Method::kStrings;  // the narrowest limits of the rows
    rl::validate(options);
    rl::validate(options_for(*this, task, rate_steps));
  }
  check(longest_two_class >= 1 && longest_two_class <= 4096, "longest_two_class must be in 1..4096",
        std::to_string(longest_two_class));
  validate_every_string(*this);
}

rl::Model model_at(const rl::TrainOptions& options, const rl::History& history,
                   std::size_t record) {
  return {options.max_length, options.attention_scale, history.u[record], history.w_record[record]};
}

const char* name_of(rl::Task task) {
  return task == rl::Task::kParityCot ? "chain of thought" : "even pairs";
}

std::vector<std::int64_t> every_step(std::int64_t last) { return log_steps(last, last, 1); }

std::vector<std::int64_t> log_steps(std::int64_t dense, std::int64_t last, int per_decade) {
  std::vector<std::int64_t> steps;
  for (std::int64_t step = 0; step <= std::min(dense, last); ++step) {
    steps.push_back(step);
  }
  for (int i = 0;; ++i) {
    const double step = std::pow(10.0, static_cast<double>(i) / per_decade);
    if (step > static_cast<double>(last) * 1.0000001) {
      break;
    }
    steps.push_back(std::min(last, static_cast<std::int64_t>(std::llround(step))));
  }
  return merged(std::move(steps), {last}, last);
}

std::vector<std::int64_t> merged(std::vector<std::int64_t> steps, std::vector<std::int64_t> more,
                                 std::int64_t last) {
  steps.insert(steps.end(), more.begin(), more.end());
  std::sort(steps.begin(), steps.end());
  steps.erase(std::unique(steps.begin(), steps.end()), steps.end());
  std::erase_if(steps, [=](std::int64_t step) { return step > last; });
  return steps;
}

std::ptrdiff_t find_step(const rl::History& history, std::int64_t step) {
  const auto at = std::lower_bound(history.step.begin(), history.step.end(), step);
  return at == history.step.end() || *at != step ? -1 : at - history.step.begin();
}

double onset_of(const rl::History& history) {
  constexpr std::size_t kFewest = 5;
  return history.step.size() < kFewest
             ? NAN
             : static_cast<double>(rl::log_growth_onset(history.step, history.u_norm));
}

MarginOfFeatures margin_of_features(const rl::Model& model,
                                    const std::vector<rl::LabelledString>& strings) {
  std::vector<double> labels;
  labels.reserve(strings.size());
  for (const rl::LabelledString& string : strings) {
    labels.push_back(string.label);
  }
  try {
    const rl::MaxMargin best = rl::max_margin(rl::features(model, strings), labels);
    return {best.margin, rl::cosine(model.u, best.direction)};
  } catch (const ValueError&) {  // not separable
    return {0.0, NAN};
  }
}

std::vector<double> thinned(const rl::History& history, const std::vector<double>& values) {
  const std::vector<std::int64_t> shown = log_steps(0, history.step.back(), 40);
  std::vector<double> out;
  for (std::size_t r = 0; r < history.step.size(); ++r) {
    if (std::binary_search(shown.begin(), shown.end(), history.step[r])) {
      out.push_back(values[r]);
    }
  }
  return out;
}

void compare_digits(Run& run, const std::string& name, const rl::History& history,
                    const std::vector<double>& measured, const std::vector<Digits>& digits) {
  std::vector<double> step;
  std::vector<double> expected;
  std::vector<double> ours;
  double worst = 0.0;
  for (const Digits& digit : digits) {
    const std::ptrdiff_t at = find_step(history, digit.step);
    if (at < 0) {
      continue;
    }
    step.push_back(static_cast<double>(digit.step));
    expected.push_back(digit.expected);
    ours.push_back(measured[static_cast<std::size_t>(at)]);
    worst = std::max(worst, std::abs(ours.back() / digit.expected - 1.0));
  }
  run.series(name + " digits", {{"step", step}, {"expected", expected}, {"measured", ours}});
  run.scalar(name + " digits: largest relative difference", worst);
}

}  // namespace paperlab::experiments::regular_language
