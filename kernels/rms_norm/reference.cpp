// The definition, one row at a time in float64. With g = dy weight and n = s r:
//   ds = r (g - n mean(g n)) + dsum,   dweight = sum over rows of dy n.

#include <cmath>
#include <cstddef>
#include <vector>

#include "kernels/common/number.h"
#include "kernels/rms_norm/rms_norm.h"

namespace paperlab::kernels {

void rms_norm_reference(const RmsNormForward& problem) {
  const auto& [dtype, num_rows, width, eps, x, residual, weight, y, sum, inverse_rms] = problem;
  for (std::int64_t row = 0; row < num_rows; ++row) {
    std::vector<double> s(static_cast<std::size_t>(width));
    double squares = 0.0;
    for (std::int64_t d = 0; d < width; ++d) {
      const std::int64_t at = row * width + d;
      double& value = s[static_cast<std::size_t>(d)];
      value = load_number(x, dtype, at);
      if (residual != nullptr) {
        store_number(sum, dtype, at, value + load_number(residual, dtype, at));
        value = load_number(sum, dtype, at);
      }
      squares += value * value;
    }
    const double r = 1.0 / std::sqrt(squares / static_cast<double>(width) + eps);
    store_number(inverse_rms, statistics_dtype(dtype), row, r);
    for (std::int64_t d = 0; d < width; ++d) {
      store_number(y, dtype, row * width + d,
                   s[static_cast<std::size_t>(d)] * r * load_number(weight, dtype, d));
    }
  }
}

void rms_norm_backward_reference(const RmsNormBackward& problem) {
  const DType dtype = problem.dtype;
  const std::int64_t width = problem.width;
  std::vector<double> grad_weight(static_cast<std::size_t>(width));
  for (std::int64_t row = 0; row < problem.num_rows; ++row) {
    const double r = load_number(problem.inverse_rms, statistics_dtype(dtype), row);
    double mean = 0.0;
    for (std::int64_t d = 0; d < width; ++d) {
      const std::int64_t at = row * width + d;
      const double grad = load_number(problem.grad_y, dtype, at);
      const double n = load_number(problem.s, dtype, at) * r;
      mean += grad * load_number(problem.weight, dtype, d) * n / static_cast<double>(width);
      grad_weight[static_cast<std::size_t>(d)] += grad * n;
    }
    for (std::int64_t d = 0; d < width; ++d) {
      const std::int64_t at = row * width + d;
      const double grad =
          load_number(problem.grad_y, dtype, at) * load_number(problem.weight, dtype, d);
      const double of_sum =
          problem.grad_sum == nullptr ? 0.0 : load_number(problem.grad_sum, dtype, at);
      store_number(problem.grad_x, dtype, at,
                   r * (grad - load_number(problem.s, dtype, at) * r * mean) + of_sum);
    }
  }
  for (std::int64_t d = 0; d < width; ++d) {
    store_number(problem.grad_weight, dtype, d, grad_weight[static_cast<std::size_t>(d)]);
  }
}

}  // namespace paperlab::kernels
