#pragma once
// Training runs: each method at each learning rate, the best of them with fresh seeds. Runs are
// independent, run side by side on one thread each, and are kept one by one.

#include <atomic>
#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "experiments/common/run.h"
#include "experiments/mudd/paired.h"
#include "experiments/mudd/rows.h"
#include "paperlab/mudd/config.h"

namespace paperlab::experiments::mudd {

struct Size {
  std::int64_t num_layers;
  std::int64_t d_model;
};

// One run. All methods of one seed see the same batches and start from the same backbone.
struct Job {
  std::string name;
  std::string method;
  Size size{};
  double learning_rate = 0.0;
  double embedding_std = 0.0;
  std::uint64_t seed = 0;
  std::int64_t num_steps = 0;
  bool is_analysed = false;  // also what figures 6, 8, 12 and 13 show
};

using Columns = std::vector<std::pair<std::string, std::vector<double>>>;

// What a run records; names are without the run's.
struct Outcome {
  double loss = 0.0;  // validation; NaN: diverged
  std::vector<std::pair<std::string, Columns>> series;
  std::vector<std::pair<std::string, double>> scalars;
};

// Trains on the calling thread alone; `on_step` is called after each step.
using RunJob = std::function<Outcome(const Job& job, const std::function<void()>& on_step)>;

// The model of a method: "base", "static", "dynamic", "multiway_static", "multiway_dynamic",
// "mudd", "hyper_connections", "lime", and with a suffix "_realloc", "_without_q" .. "_without_r",
// "_eq10",
// "_2x2", "_1x2", "_2x1" (dilation x period), "_window".
paperlab::mudd::MuddConfig model_config(const Config& config, const std::string& method, Size size);

// A method's runs: a sweep over learning rates with some seeds, and the best rate with fresh ones.
struct Series {
  std::string method;
  Size size{};
  bool is_analysed = false;
  std::int64_t num_steps = 0;  // 0: the configuration's
  double embedding_std = 0.0;  // likewise
};

class Trainer {
 public:
  // Decoders of text.
  Trainer(const Config& config, Run& run, const std::string& tokens_folder);
  // Other models: what `open` gives trains them, and is asked for once a run is missing.
  Trainer(const Config& config, Run& run, std::function<RunJob()> open);

  // Trains what has not been trained yet.
  void train(const std::vector<Job>& jobs);

  // Sweeps, then the best rate of each with the fresh seeds; records the best rates and means.
  void sweep(const std::vector<Series>& series);

  // Validation loss of a run; NaN if it has diverged.
  double loss(const std::string& job) const;
  // Of the fresh seeds.
  std::vector<double> losses(const Series& series) const;
  double mean_loss(const Series& series) const;
  // Losses of a less those of b, paired over the fresh seeds.
  std::vector<double> differences(const Series& a, const Series& b) const;
  Gap gap(const Series& a, const Series& b) const { return gap_of(differences(a, b)); }
  // Records the gap as scalars "gap of A to B: mean", "... mean + 2 standard errors", "... seeds
  // not below 0".
  Gap record_gap(const Series& a, const Series& b);

  Series usual(const std::string& method, bool is_analysed = false) const {
    return {method, {config_.num_layers, config_.d_model}, is_analysed, 0, 0.0};
  }

 private:
  std::vector<Job> missing(const std::vector<Job>& jobs) const;
  void plan(const std::vector<Job>& jobs);
  void train_planned(const std::vector<Job>& jobs);
  void train_one_by_one(const std::vector<Job>& jobs, const RunJob& run_job);
  void train_side_by_side(const std::vector<Job>& jobs, const RunJob& run_job);
  Job job_of(const Series& series) const;
  std::vector<Job> sweep_jobs(const Series& series) const;
  std::vector<double> losses_by_rate(const Series& series) const;
  std::vector<Job> fresh_jobs(const Series& series, double rate) const;
  double best_rate(const Series& series) const;

  const Config& config_;
  Run& run_;
  std::function<RunJob()> open_;
  std::int64_t num_planned_ = 0;  // training steps, for the progress
  std::atomic<std::int64_t> num_done_ = 0;
};

// "base", "base 4x48", "base 4x48 800 steps", "base embedding 0.02"
std::string name_of(const Config& config, const Series& series);
std::string fresh_name(const Config& config, const Series& series, std::uint64_t seed);
std::string number_text(double value);  // "0.003"

}  // namespace paperlab::experiments::mudd
