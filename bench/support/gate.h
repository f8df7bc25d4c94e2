#pragma once
// The correctness gate of the kernels' benchmarks: what is wrong is not timed.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <vector>

#include "tests/support/one_layer_inputs.h"

namespace paperlab::bench {

// Whether the gradients agree to 1e-12 of the largest entry; NaN agrees with nothing.
inline bool same_gradient(const test::OneLayerInputs& a, const test::OneLayerInputs& b) {
  const auto agree = [](const std::vector<double>& x, const std::vector<double>& y) {
    double largest = 0.0;
    double error = 0.0;
    for (std::size_t i = 0; i < x.size(); ++i) {
      largest = std::max(largest, std::fabs(x[i]));
      error = std::isnan(x[i] - y[i]) ? INFINITY : std::max(error, std::fabs(x[i] - y[i]));
    }
    return error <= 1e-12 * largest;
  };
  return agree(a.u_gradient, b.u_gradient) && agree(a.w_gradient, b.w_gradient);
}

}  // namespace paperlab::bench
