// The definition, number by number in float64. With s = 1 / (1 + exp(-gate)):
//   y = gate s up,   dup = dy gate s,   dgate = dy up s (1 + gate (1 - s)),
// where 1 - s is the same function of -gate.

#include <cmath>

#include "kernels/common/number.h"
#include "kernels/swiglu/swiglu.h"

namespace paperlab::kernels {
namespace {

double sigmoid(double x) { return 1.0 / (1.0 + std::exp(-x)); }

template <class View>
double load(const Swiglu& problem, const View& rows, std::int64_t row, std::int64_t f) {
  return load_number(rows.data, problem.dtype, row * rows.stride + f);
}

void store(const Swiglu& problem, const MutableRows& rows, std::int64_t row, std::int64_t f,
           double value) {
  store_number(rows.data, problem.dtype, row * rows.stride + f, value);
}

}  // namespace

void swiglu_reference(const Swiglu& problem, const MutableRows& y) {
  for (std::int64_t row = 0; row < problem.num_rows; ++row) {
    for (std::int64_t f = 0; f < problem.width; ++f) {
      const double gate = load(problem, problem.gate, row, f);
      store(problem, y, row, f, gate * sigmoid(gate) * load(problem, problem.up, row, f));
    }
  }
}

void swiglu_backward_reference(const Swiglu& problem, const Rows& grad_y,
                               const MutableRows& grad_gate, const MutableRows& grad_up) {
  for (std::int64_t row = 0; row < problem.num_rows; ++row) {
    for (std::int64_t f = 0; f < problem.width; ++f) {
      const double gate = load(problem, problem.gate, row, f);
      const double up = load(problem, problem.up, row, f);
      const double grad = load(problem, grad_y, row, f);
      const double s = sigmoid(gate);
      store(problem, grad_gate, row, f, grad * up * s * (1.0 + gate * sigmoid(-gate)));
      store(problem, grad_up, row, f, grad * gate * s);
    }
  }
}

}  // namespace paperlab::kernels
