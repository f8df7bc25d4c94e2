// F4 (norms), F5 (max margin) and F6 (rate) of both tasks.
#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "experiments/regular_language/rows.h"

namespace paperlab::experiments::regular_language {
namespace {

constexpr rl::Task kTasks[] = {rl::Task::kEvenPairs, rl::Task::kParityCot};

// Records of history with step in first..last.
struct Window {
  std::vector<double> log_step;
  std::vector<double> log_loss;
  std::vector<double> u_norm;
};

Window window(const rl::History& history, double first, double last) {
  Window out;
  for (std::size_t r = 0; r < history.step.size(); ++r) {
    const auto step = static_cast<double>(history.step[r]);
    if (step >= first && step <= last) {
      out.log_step.push_back(std::log(step));
      out.log_loss.push_back(std::log(history.loss[r]));
      out.u_norm.push_back(history.u_norm[r]);
    }
  }
  return out;
}

double distance(const std::vector<double>& a, const std::vector<double>& b) {
  double sum = 0.0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    sum += (a[i] - b[i]) * (a[i] - b[i]);
  }
  return std::sqrt(sum);
}

// History with W recorded at `steps`.
rl::History with_w(rl::TrainOptions& options, std::vector<std::int64_t> steps) {
  options.record = merged(std::move(steps), {}, options.num_steps);
  options.record_w = true;
  return rl::train(options);
}

// |W_t - W_t0| with t0 the end of the boost.
void attention_drift(const Config& config, Run& run, rl::Task task) {
  rl::TrainOptions options = options_for(config, task, config.rate_steps);
  const rl::History history = with_w(options, merged(log_steps(0, config.rate_steps, 16),
                                                     {config.boost_steps}, config.rate_steps));
  const std::ptrdiff_t start = find_step(history, config.boost_steps);
  if (start < 0) {
    return;
  }
  std::vector<double> step;
  std::vector<double> drift;
  for (auto r = static_cast<std::size_t>(start); r < history.step.size(); ++r) {
    step.push_back(static_cast<double>(history.step[r]));
    drift.push_back(
        distance(history.w_record[r], history.w_record[static_cast<std::size_t>(start)]));
  }
  run.series(std::string("F4 attention drift ") + name_of(task),
             {{"step", step}, {"drift", drift}});
  const std::ptrdiff_t middle = find_step(history, 10000);
  const std::ptrdiff_t end = find_step(history, 100000);
  if (middle >= start && end >= start) {
    run.claim(task == rl::Task::kEvenPairs ? "C6a" : "C6b",
              drift[static_cast<std::size_t>(end - start)] /
                  drift[static_cast<std::size_t>(middle - start)]);
  }
}

// What the max margin of the current features says of u.
struct MarginColumns {
  std::vector<double> step;
  std::vector<double> gamma;
  std::vector<double> cosine;
  std::vector<double> normalized_margin;
  std::vector<double> kappa;

  double at(const std::vector<double>& column, double wanted) const {
    const auto found = std::find(step.begin(), step.end(), wanted);
    return found == step.end() ? NAN : column[static_cast<std::size_t>(found - step.begin())];
  }
};

MarginColumns margins(const rl::TrainOptions& options, const rl::History& history) {
  const std::vector<rl::LabelledString> strings = rl::training_strings(options);
  MarginColumns out;
  for (std::size_t r = 0; r < history.step.size(); ++r) {
    const rl::Model model = model_at(options, history, r);
    const MarginOfFeatures best = margin_of_features(model, strings);
    const auto step = static_cast<double>(history.step[r]);
    out.step.push_back(step);
    out.gamma.push_back(best.margin);
    out.cosine.push_back(best.cosine);
    out.normalized_margin.push_back(history.min_margin[r] / history.u_norm[r]);
    out.kappa.push_back(step * history.loss[r] * options.learning_rate * best.margin * best.margin);
  }
  return out;
}

void record_margins(Run& run, const std::string& name, const MarginColumns& columns) {
  run.series("F5 " + name, {{"step", columns.step},
                            {"gamma", columns.gamma},
                            {"cosine", columns.cosine},
                            {"normalized_margin", columns.normalized_margin},
                            {"kappa", columns.kappa}});
}

// How often `column` does not rise from one of `steps` to the next; NaN if one is missing.
double num_falls(const MarginColumns& columns, const std::vector<double>& column,
                 const std::vector<double>& steps) {
  double falls = 0.0;
  for (std::size_t i = 1; i < steps.size(); ++i) {
    const double before = columns.at(column, steps[i - 1]);
    const double after = columns.at(column, steps[i]);
    if (std::isnan(before) || std::isnan(after)) {
      return NAN;
    }
    falls += after <= before ? 1.0 : 0.0;
  }
  return falls;
}

void claim_if_known(Run& run, const std::string& id, double value) {
  if (!std::isnan(value)) {
    run.claim(id, value);
  }
}

const std::vector<std::int64_t> kMarginSteps = {100,   200,   300,   600,    1000,   2000,   5000,
                                                10000, 20000, 50000, 100000, 300000, 1000000};

MarginColumns margins_of(const Config& config, Run& run, rl::Task task, std::int64_t freeze_from,
                         const std::string& name) {
  rl::TrainOptions options = options_for(config, task, config.rate_steps);
  options.freeze_attention_from = freeze_from;
  const MarginColumns columns = margins(options, with_w(options, kMarginSteps));
  record_margins(run, name, columns);
  return columns;
}

}  // namespace

void norms(const Config& config, Run& run) {
  for (const rl::Task task : kTasks) {
    rl::TrainOptions options = options_for(config, task, config.rate_steps);
    options.record = log_steps(4000, config.rate_steps, 64);
    const rl::History history = rl::train(options);
    const bool is_even_pairs = task == rl::Task::kEvenPairs;
    const std::string name = name_of(task);
    run.series("F4 norms " + name, {{"step", thinned(history, to_double(history.step))},
                                    {"u_norm", thinned(history, history.u_norm)},
                                    {"w_norm", thinned(history, history.w_norm)}});
    const double onset = onset_of(history);
    run.scalar("F4 onset of logarithmic growth " + name, onset);
    run.claim(is_even_pairs ? "C3a" : "C3b", onset);
    const Window late = window(history, 1e4, 1e5);
    if (config.rate_steps >= 100000) {
      const rl::Line growth = rl::fit_line(late.log_step, late.u_norm);
      run.scalar("F4 growth of |u| per ln t " + name, growth.slope);
      run.claim(is_even_pairs ? "C3c" : "C3d", growth.r_squared);
      run.claim(is_even_pairs ? "C6c" : "C6d", growth.slope);
    }
    attention_drift(config, run, task);
  }
}

void max_margin(const Config& config, Run& run) {
  const MarginColumns even_pairs = margins_of(config, run, rl::Task::kEvenPairs, -1, "even pairs");
  claim_if_known(run, "C5d", even_pairs.at(even_pairs.gamma, 100));
  claim_if_known(run, "C6e", even_pairs.at(even_pairs.cosine, 1e4));
  claim_if_known(run, "C6f",
                 num_falls(even_pairs, even_pairs.normalized_margin, {1e3, 2e3, 5e3, 1e4, 1e5}));
  claim_if_known(run, "C6g", num_falls(even_pairs, even_pairs.cosine, {1e4, 2e4, 5e4, 1e5}));
  const MarginColumns chain = margins_of(config, run, rl::Task::kParityCot, -1, "chain of thought");
  claim_if_known(run, "C5e", chain.at(chain.gamma, 100));
  claim_if_known(run, "C6h", chain.at(chain.cosine, 1e4));
  claim_if_known(run, "C6i", chain.at(chain.cosine, 1e5));
  const MarginColumns frozen =
      margins_of(config, run, rl::Task::kEvenPairs, 1000, "even pairs, attention frozen at 1000");
  claim_if_known(run, "C6j", num_falls(frozen, frozen.cosine, {1e3, 1e4, 1e5}));
  claim_if_known(run, "C6k", frozen.at(frozen.cosine, 1e5));
  double least = std::numeric_limits<double>::infinity();
  double most = -least;
  for (const MarginColumns* columns : {&even_pairs, &chain}) {
    for (std::size_t i = 0; i < columns->step.size(); ++i) {
      if (columns->step[i] >= 2000.0) {
        least = std::min(least, columns->kappa[i]);
        most = std::max(most, columns->kappa[i]);
      }
    }
  }
  if (config.rate_steps >= 100000) {
    run.claim("C7e", least);
    run.claim("C7f", most);
  }
}

void rate(const Config& config, Run& run) {
  for (const rl::Task task : kTasks) {
    const bool is_even_pairs = task == rl::Task::kEvenPairs;
    const std::string name = name_of(task);
    rl::TrainOptions options = options_for(config, task, config.rate_steps);
    options.record = log_steps(0, config.rate_steps, 64);
    const rl::History history = rl::train(options);
    std::vector<double> step_times_loss;
    double rises = 0.0;
    for (std::size_t r = 0; r < history.step.size(); ++r) {
      step_times_loss.push_back(static_cast<double>(history.step[r]) * history.loss[r]);
      const bool is_late = r > 0 && history.step[r - 1] >= 1000;
      rises += is_late && step_times_loss[r] >= step_times_loss[r - 1] ? 1.0 : 0.0;
    }
    run.series("F6 " + name, {{"step", to_double(history.step)},
                              {"loss", history.loss},
                              {"step_times_loss", step_times_loss}});
    if (config.rate_steps >= 100000) {
      run.claim(is_even_pairs ? "C7a" : "C7b", rises);
      const Window late = window(history, 1e4, 1e5);
      run.claim(is_even_pairs ? "C7c" : "C7d", rl::fit_line(late.log_step, late.log_loss).slope);
    }
    if (config.rate_steps >= 1000000) {
      const Window latest = window(history, 1e5, 1e6);
      run.claim(is_even_pairs ? "C7g" : "C7h",
                rl::fit_line(latest.log_step, latest.log_loss).slope);
    }
  }
}

}  // namespace paperlab::experiments::regular_language
