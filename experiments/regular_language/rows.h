#pragma once
// The rows of the regular-language experiments: one function per figure, and what they share.

#include <cstdint>
#include <string>
#include <vector>

#include "experiments/common/run.h"
#include "paperlab/regular_language/max_margin.h"
#include "paperlab/regular_language/measures.h"
#include "paperlab/regular_language/model.h"
#include "paperlab/regular_language/train.h"

namespace paperlab::experiments::regular_language {

namespace rl = paperlab::regular_language;

struct Config {
  double learning_rate = 0.1;
  double attention_scale = 2.0;
  std::int64_t boost_steps = 100;
  std::int64_t num_steps = 10000;    // of the training curves (F1-F3, F7, F8, controls)
  std::int64_t rate_steps = 100000;  // of the growth rates and max-margin directions (F4-F6)
  int max_length = 6;
  int base_length = 4;
  int longest_two_class = 256;  // F10: even pairs by the two-class model
  // Every string by the fold kernel: rows every-string-20 and -24, every-chain-16.
  std::vector<int> all_lengths = {20, 24};
  int all_chain_length = 16;
  std::int64_t all_steps = 2000;
  std::int64_t all_chain_steps = 12500;
  std::string device = "cpu";  // of the rows "-gpu": "cuda", or "cpu" to try them
  std::uint64_t seed = 0;

  void fields(auto&& visit) {
    visit("learning_rate", learning_rate);
    visit("attention_scale", attention_scale);
    visit("boost_steps", boost_steps);
    visit("num_steps", num_steps);
    visit("rate_steps", rate_steps);
    visit("max_length", max_length);
    visit("base_length", base_length);
    visit("longest_two_class", longest_two_class);
    visit("all_lengths", all_lengths);
    visit("all_chain_length", all_chain_length);
    visit("all_steps", all_steps);
    visit("all_chain_steps", all_chain_steps);
    visit("device", device);
    visit("seed", seed);
  }

  // Throws ValueError, and UnsupportedError if the device is not there.
  void validate() const;
};

// F1-F3, F8: even pairs.
void loss(const Config& config, Run& run);
void token_scores(const Config& config, Run& run);
void attention(const Config& config, Run& run);
void zero_shot(const Config& config, Run& run);
// F7: parity by chain of thought.
void chain_of_thought(const Config& config, Run& run);
// F4-F6: growth, max margin, rate.
void norms(const Config& config, Run& run);
void max_margin(const Config& config, Run& run);
void rate(const Config& config, Run& run);
// F9, F10: other scales of the softmax, longer strings.
void softmax_scale(const Config& config, Run& run);
void longer_strings(const Config& config, Run& run);
// All strings of a length, from zero and (the longer ones) from a random initialization, and chains
// of thought, by the fold kernel.
void every_string(const Config& config, Run& run, int length, rl::Device device);
void every_string_random(const Config& config, Run& run, rl::Device device);
void every_chain(const Config& config, Run& run, rl::Device device);
// Controls that the paper does not have.
void controls(const Config& config, Run& run);

// Shared by the rows.

rl::TrainOptions options_for(const Config& config, rl::Task task, std::int64_t num_steps);
rl::Device device_of(const Config& config);
rl::Model model_at(const rl::TrainOptions& options, const rl::History& history, std::size_t record);
const char* name_of(rl::Task task);  // "even pairs" or "chain of thought"

// Every step of 0..last.
std::vector<std::int64_t> every_step(std::int64_t last);
// Every step up to `dense`, then `per_decade` steps a decade up to `last`, both ends included.
std::vector<std::int64_t> log_steps(std::int64_t dense, std::int64_t last, int per_decade);
// `steps` and those of `more`, without repetition, up to `last`.
std::vector<std::int64_t> merged(std::vector<std::int64_t> steps, std::vector<std::int64_t> more,
                                 std::int64_t last);
// Place of `step` in history.step; -1 if it was not recorded.
std::ptrdiff_t find_step(const rl::History& history, std::int64_t step);

// The step where growth turns logarithmic; NaN if too few steps were recorded to tell.
double onset_of(const rl::History& history);

// The max margin of a model's features: margin 0 and cosine NaN if they are not separable.
struct MarginOfFeatures {
  double margin;
  double cosine;  // of u with the max-margin direction
};
MarginOfFeatures margin_of_features(const rl::Model& model,
                                    const std::vector<rl::LabelledString>& strings);

// Values of every record that a figure shows: some 40 a decade.
std::vector<double> thinned(const rl::History& history, const std::vector<double>& values);

template <class T>
std::vector<double> to_double(const std::vector<T>& values) {
  return {values.begin(), values.end()};
}

// A digit-level comparison with the table of a run of the same configuration: not a claim of the
// paper, it tells whether this implementation still does the same thing.
struct Digits {
  std::int64_t step;
  double expected;
};
// Records expected, measured and the largest relative difference as "<name> digits".
void compare_digits(Run& run, const std::string& name, const rl::History& history,
                    const std::vector<double>& measured, const std::vector<Digits>& digits);

}  // namespace paperlab::experiments::regular_language
