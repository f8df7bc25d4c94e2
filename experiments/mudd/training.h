#pragma once
// One training run and what is measured on its model.

#include <functional>
#include <memory>
#include <string>

#include "experiments/mudd/jobs.h"

namespace paperlab::train {
struct History;
}  // namespace paperlab::train

namespace paperlab::experiments::mudd {

class Text;

// The text of all runs: safe to use from several threads.
std::shared_ptr<const Text> open_text(const Config& config, const std::string& tokens_folder);

// A RunJob; losses are in nats per byte.
Outcome run_job(const Config& config, const Text& text, const Job& job,
                const std::function<void()>& on_step);

// Losses of training, means over `every` steps.
Columns curve(const train::History& history, std::int64_t every);

}  // namespace paperlab::experiments::mudd
