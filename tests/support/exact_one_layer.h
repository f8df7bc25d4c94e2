#pragma once
// The loss and gradient of the one-layer transformer in long double, a string at a time, with the
// sums of absolute values that bound what rounding can do. Independent of the kernels.
// Source: Huang, Liang, Yang, ICML 2025 (model, logistic loss).

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/common/affine_strings.h"
#include "kernels/common/one_layer.h"

namespace paperlab::test {

struct WeightedString {
  std::vector<std::uint8_t> tokens;  // 0 or 1
  int label = 1;
  double weight = 0.0;
};

std::vector<WeightedString> strings_of(std::span<const kernels::AffineGroup> groups);

struct ExactOneLayer {
  long double loss = 0.0L;
  long double min_margin = 0.0L;
  std::int64_t num_correct = 0;
  long double sum_of_c = 0.0L;  // c = dLoss/dT of each string
  std::vector<long double> u;   // [2 Lmax]
  std::vector<long double> w;   // [2 Lmax queries, 2 Lmax keys]

  // The sums of |c| phi for u, of |c| phi (|u| + S) / lambda for w, of loss + |c| S for the loss,
  // where S = sum_l phi_l |u_l| of the string is what errors of T are relative to.
  long double loss_norm = 0.0L;
  std::vector<long double> u_norm;
  std::vector<long double> w_norm;

  double largest_logit = 0.0;  // largest difference of two logits of one string, over lambda
  double largest_u = 0.0;
};

ExactOneLayer exact_one_layer(const std::vector<WeightedString>& strings,
                              const kernels::OneLayerParameters& parameters);

// How far a float64 evaluation in any order may be from the exact value, as a multiple of the norms
// above. The term of one string has a relative error of at most
//   phi:  2 (3 x + 1 + L)         x = largest_logit: exp of an argument with three roundings; Z, N
//   c:    2 (3 x + 1 + L) max|u|  from T, the derivative of log c by T being at most 1
//   rest: 8                       the divisions and products of Q, R and the gradient
// units in the last place, and each of the `sequential_adds` additions that follow one another adds
// one. These are bounds of the worst case; typical errors are far smaller.
double rounding_bound(const ExactOneLayer& exact, int max_length, double sequential_adds);

}  // namespace paperlab::test
