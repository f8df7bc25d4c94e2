#pragma once
// One training run and what is measured on its model.

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "experiments/mudd/jobs.h"

namespace paperlab::experiments::mudd {

using Columns = std::vector<std::pair<std::string, std::vector<double>>>;

// What a run records; names are without the run's.
struct Outcome {
  double loss = 0.0;  // validation, nats per byte; NaN: diverged
  std::vector<std::pair<std::string, Columns>> series;
  std::vector<std::pair<std::string, double>> scalars;
};

// The text of all runs: safe to use from several threads.
std::shared_ptr<const Text> open_text(const Config& config, const std::string& tokens_folder);

// Trains on the calling thread alone; `on_step` is called after each step.
Outcome run_job(const Config& config, const Text& text, const Job& job,
                const std::function<void()>& on_step);

}  // namespace paperlab::experiments::mudd
