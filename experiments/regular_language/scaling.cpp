// F9 (softmax scale), F10 (longer strings) and the exhaustive check of the two-class model.
#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <string>

#include "experiments/regular_language/rows.h"

namespace paperlab::experiments::regular_language {
namespace {

// The onset divided by lambda for each lambda.
std::vector<double> onsets(const Config& config, Run& run, rl::Task task,
                           const std::vector<double>& scales) {
  std::vector<double> onset;
  std::vector<double> ratio;
  double worst = 0.0;
  for (const double scale : scales) {
    const auto num_steps = static_cast<std::int64_t>(
        std::llround(std::min(4000.0, static_cast<double>(config.num_steps)) * scale));
    rl::TrainOptions options = options_for(config, task, num_steps);
    options.attention_scale = scale;
    options.record.clear();
    for (std::int64_t step = 0; step <= num_steps; step += 5) {
      options.record.push_back(step);
    }
    const rl::History history = rl::train(options);
    onset.push_back(onset_of(history));
    ratio.push_back(onset.back() / scale);
    options.method = rl::Method::kFold;
    options.record = {num_steps};
    const double full = rl::train(options).loss.back();
    worst = std::max(worst, std::abs(history.loss.back() / full - 1.0));
  }
  run.series(std::string("F9 ") + name_of(task),
             {{"lambda", scales}, {"onset", onset}, {"onset_per_lambda", ratio}});
  run.scalar(std::string("F9 two-class against all strings, relative difference of the loss, ") +
                 name_of(task),
             worst);
  return ratio;
}

void lengths(const Config& config, Run& run, rl::Task task, const std::vector<int>& sizes,
             std::int64_t num_steps) {
  std::vector<double> size;
  std::vector<double> perfect;
  std::vector<double> onset;
  constexpr std::array<std::int64_t, 4> kLossSteps = {100, 600, 1000, 2000};
  std::array<std::vector<double>, 4> loss;
  for (const int length : sizes) {
    rl::TrainOptions options = options_for(config, task, num_steps);
    options.base_length = length;
    options.max_length = task == rl::Task::kParityCot ? 2 * length - 2 : length;
    options.record = every_step(num_steps);
    const rl::History history = rl::train(options);
    size.push_back(length);
    perfect.push_back(static_cast<double>(rl::perfect_from(history.step, history.accuracy)));
    onset.push_back(onset_of(history));
    for (std::size_t i = 0; i < kLossSteps.size(); ++i) {
      const std::ptrdiff_t at = find_step(history, kLossSteps[i]);
      loss[i].push_back(at < 0 ? NAN : history.loss[static_cast<std::size_t>(at)]);
    }
    run.progress(static_cast<std::int64_t>(size.size()), std::ssize(sizes));
  }
  run.series(std::string("F10 ") + name_of(task), {{"length", size},
                                                   {"perfect_from", perfect},
                                                   {"onset", onset},
                                                   {"loss_100", loss[0]},
                                                   {"loss_600", loss[1]},
                                                   {"loss_1000", loss[2]},
                                                   {"loss_2000", loss[3]}});
}

double relative_difference(const std::vector<double>& a, const std::vector<double>& b) {
  double worst = 0.0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    worst = std::max(worst, std::abs(a[i] / b[i] - 1.0));
  }
  return worst;
}

// All strings by the fold kernel against the two-class model, and from a random initialization.
void every_string_of(Run& run, rl::TrainOptions options, const std::string& name) {
  options.record = merged({}, {100, 300, 600, 1000, 2000, options.num_steps}, options.num_steps);
  options.method = rl::Method::kTwoClass;
  const rl::Device device = options.device;
  options.device = rl::Device::kCpu;
  const rl::History expected = rl::train(options);
  options.device = device;
  options.method = rl::Method::kFold;
  options.on_step = [&run, &options](std::int64_t step) { run.progress(step, options.num_steps); };
  const rl::History history = rl::train(options);
  run.series("every string " + name, {{"step", to_double(history.step)},
                                      {"two_class", expected.loss},
                                      {"all_strings", history.loss},
                                      {"accuracy", history.accuracy}});
  run.scalar("every string " + name + ": relative difference of the loss",
             relative_difference(history.loss, expected.loss));
}

// Share of all strings of the model's length whose truncated chain of thought ends in their parity.
double zero_shot_accuracy(Run& run, const rl::Model& model) {
  const int length = model.max_length;
  const std::uint32_t count = 1U << static_cast<unsigned>(length);
  const std::uint32_t chunk = std::min(count, 1U << 18U);
  std::vector<std::uint8_t> strings(static_cast<std::size_t>(chunk) *
                                    static_cast<std::size_t>(length));
  std::uint32_t correct = 0;
  for (std::uint32_t first = 0; first < count; first += chunk) {
    for (std::uint32_t i = 0; i < chunk; ++i) {
      for (int l = 0; l < length; ++l) {
        strings[i * static_cast<std::size_t>(length) + static_cast<std::size_t>(l)] =
            static_cast<std::uint8_t>(((first + i) >> static_cast<unsigned>(l)) & 1U);
      }
    }
    const std::vector<int> parity = rl::chain_of_thought(model, strings, length, true);
    for (std::uint32_t i = 0; i < chunk; ++i) {
      correct += (std::popcount(first + i) & 1) == parity[i] ? 1U : 0U;
    }
    run.progress(first + chunk, count);
  }
  return static_cast<double>(correct) / count;
}

}  // namespace

void softmax_scale(const Config& config, Run& run) {
  const std::vector<double> scales = {1.0, 2.0, 4.0, 8.0};
  const std::vector<double> even_pairs = onsets(config, run, rl::Task::kEvenPairs, scales);
  run.claim("C9a", *std::min_element(even_pairs.begin(), even_pairs.end()));
  run.claim("C9b", *std::max_element(even_pairs.begin(), even_pairs.end()));
  const std::vector<double> chain = onsets(config, run, rl::Task::kParityCot, scales);
  run.claim("C9c", *std::min_element(chain.begin(), chain.end()));
  run.claim("C9d", *std::max_element(chain.begin(), chain.end()));
}

void longer_strings(const Config& config, Run& run) {
  std::vector<int> sizes;
  for (const int length : {8, 12, 16, 20, 24, 32, 64, 128, 256}) {
    if (length <= config.longest_two_class) {
      sizes.push_back(length);
    }
  }
  lengths(config, run, rl::Task::kEvenPairs, sizes, std::min<std::int64_t>(config.num_steps, 4000));
  lengths(config, run, rl::Task::kParityCot, {4, 6, 8, 10, 12, 16}, 2 * config.num_steps);
}

void every_string(const Config& config, Run& run, int length, rl::Device device) {
  rl::TrainOptions options = options_for(config, rl::Task::kEvenPairs, config.all_steps);
  options.device = device;
  options.max_length = length;
  every_string_of(run, options, "length " + std::to_string(length));
}

void every_string_random(const Config& config, Run& run, rl::Device device) {
  rl::TrainOptions options = options_for(config, rl::Task::kEvenPairs, config.all_steps);
  options.device = device;
  options.max_length = config.all_lengths.back();
  options.method = rl::Method::kFold;
  options.init_std = 0.01;
  options.record_w = true;
  options.on_step = [&](std::int64_t step) { run.progress(step, options.num_steps); };
  const rl::History history = rl::train(options);
  const std::string name =
      "every string length " + std::to_string(options.max_length) + " from N(0, 0.01^2): ";
  run.scalar(name + "loss", history.loss.back());
  run.scalar(name + "accuracy", history.accuracy.back());
  run.scalar(name + "accuracy of the truncated chain of thought",
             zero_shot_accuracy(run, model_at(options, history, 0)));
}

void every_chain(const Config& config, Run& run, rl::Device device) {
  rl::TrainOptions options = options_for(config, rl::Task::kParityCot, config.all_chain_steps);
  options.device = device;
  options.base_length = config.all_chain_length;
  options.max_length = 2 * options.base_length - 2;
  every_string_of(run, options, "chain of thought of " + std::to_string(options.base_length));
}

}  // namespace paperlab::experiments::regular_language
