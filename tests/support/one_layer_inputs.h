#pragma once
// Inputs of the one-layer kernels: random parameters, outputs that start as NaN, families of
// strings.

#include <cstdint>
#include <vector>

#include "kernels/common/affine_strings.h"
#include "kernels/common/one_layer.h"

namespace paperlab::test {

struct OneLayerCase {
  int max_length = 6;
  double u_std = 1.0;
  double w_std = 1.0;
  double attention_scale = 2.0;
  std::uint64_t seed = 7;
};

// u ~ N(0, u_std^2) and w ~ N(0, w_std^2), entry by entry: no symmetry of any kind.
class OneLayerInputs {
 public:
  explicit OneLayerInputs(const OneLayerCase& of);

  kernels::OneLayerParameters parameters() const;
  // Fills the outputs with NaN and returns them.
  kernels::OneLayerGradient gradient();

  std::vector<double> u;           // [2 Lmax]
  std::vector<double> w;           // [2 Lmax queries, 2 Lmax keys]
  std::vector<double> u_gradient;  // as u
  std::vector<double> w_gradient;  // as w

 private:
  OneLayerCase case_;
};

// All strings of lengths 1..max_length, labelled by even pairs.
std::vector<kernels::AffineGroup> even_pairs_groups(int max_length);

// The same groups, each with another weight for its strings.
std::vector<kernels::AffineGroup> with_uneven_weights(std::vector<kernels::AffineGroup> groups);

// Foldable groups with random masks: every position before the last reads random rows or random
// columns, or nothing. One group for each number of bits 1..max_bits, sorted by length.
std::vector<kernels::AffineGroup> random_groups(int max_bits, std::uint64_t seed);

}  // namespace paperlab::test
