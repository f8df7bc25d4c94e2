#pragma once
// The definition, a string at a time: what every one-layer kernel is compared with.

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/common/one_layer.h"

namespace paperlab::kernels {

// Sets the gradient to 0.
void clear_gradient(const OneLayerParameters& parameters, const OneLayerGradient& gradient);

// Adds one string of label y (+1 or -1) to the loss, the counts and the gradient
// (derivation in kernels/one_layer_fold/README.md):
//   c = -y weight s(-y T),  du[(l, x_l)] += c phi_l,
//   dW[(l, x_l), (L, x_L)] += c phi_l (u[(l, x_l)] - T) / lambda
void add_string(const OneLayerParameters& parameters, std::span<const std::uint8_t> tokens, int y,
                double weight, const OneLayerGradient& gradient, OneLayerEvaluation& evaluation);

// An evaluation of no string.
OneLayerEvaluation no_strings();

void merge(OneLayerEvaluation& to, const OneLayerEvaluation& part);

// The parts of an evaluation, added in order.
OneLayerEvaluation merged(std::span<const OneLayerEvaluation> parts);

// Room for a gradient that nobody reads.
class UnusedGradient {
 public:
  explicit UnusedGradient(const OneLayerParameters& parameters)
      : width_(2 * static_cast<std::size_t>(parameters.max_length)),
        values_(width_ + width_ * width_) {}
  OneLayerGradient view() { return {values_.data(), values_.data() + width_}; }

 private:
  std::size_t width_;
  std::vector<double> values_;
};

}  // namespace paperlab::kernels
