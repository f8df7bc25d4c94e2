#include "bench/support/train_step.h"

#include <cmath>

namespace paperlab::bench {

using regular_language::Parameters;

TrainStep::TrainStep(const regular_language::TrainOptions& options, int num_threads)
    : options_(options),
      dynamics_(
          regular_language::make_exhaustive(options, std::make_shared<ThreadPool>(num_threads))),
      start_(dynamics_->initial()),
      at_(start_),
      optimizer_(options.optimizer, start_) {}

void TrainStep::step() {
  dynamics_->gradient(at_, gradient_);
  optimizer_.update(gradient_, /*gradient_norm=*/0.0, options_.learning_rate,
                    options_.learning_rate * options_.attention_scale, at_);
  for (const double x : at_.u) {
    if (!std::isfinite(x)) {
      throw ValueError("TrainStep: u must stay finite");
    }
  }
}

Parameters TrainStep::gradient() {
  dynamics_->gradient(at_, gradient_);
  return gradient_;
}

}  // namespace paperlab::bench
