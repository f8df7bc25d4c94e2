#pragma once
// The optimizers of train(): plain elementwise rules on u and w.

#include <cstdint>

#include "paperlab/regular_language/dynamics_internal.h"

namespace paperlab::regular_language {

class OptimizerState {
 public:
  OptimizerState(Optimizer kind, const Parameters& like);

  // Moves `at` against `gradient`: u by u_step, w by w_step times the optimizer's direction.
  // `gradient_norm` is the norm over u and w together. Throws ValueError if the direction is
  // undefined (kNormalizedGd and a zero gradient).
  void update(const Parameters& gradient, double gradient_norm, double u_step, double w_step,
              Parameters& at);

 private:
  Optimizer kind_;
  std::int64_t num_updates_ = 0;
  Parameters first_;   // momentum, or Adam's first moment
  Parameters second_;  // Adam's second moment
};

}  // namespace paperlab::regular_language
