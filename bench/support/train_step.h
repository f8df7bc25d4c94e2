#pragma once
// One step of train(): gradient by a kernel, then the update; nothing is logged.

#include <memory>

#include "paperlab/core/parallel.h"
#include "paperlab/regular_language/dynamics_internal.h"
#include "paperlab/regular_language/optimizer_internal.h"

namespace paperlab::bench {

class TrainStep {
 public:
  TrainStep(const regular_language::TrainOptions& options, int num_threads);

  void reset() { at_ = start_; }  // random u and w of options.init_std and options.seed
  void step();                    // in the boosted phase

  // In the layout of the kernels: w [query, key].
  const regular_language::Parameters& state() const { return at_; }
  regular_language::Parameters gradient();

 private:
  regular_language::TrainOptions options_;
  std::unique_ptr<regular_language::Dynamics> dynamics_;
  regular_language::Parameters start_;
  regular_language::Parameters at_;
  regular_language::Parameters gradient_;
  regular_language::OptimizerState optimizer_;
};

}  // namespace paperlab::bench
