#pragma once
// gelu and its slope (host-device).

#include <cmath>

#include "kernels/depth_aggregate/depth_aggregate.h"
#include "paperlab/core/host_device.h"

namespace paperlab::kernels::depth {

template <class Number>
struct GeluNumbers {
  Number value;
  Number slope;
};

template <class Number>
PAPERLAB_HD GeluNumbers<Number> gelu_exact(Number z) {
  constexpr auto kHalfRoot = static_cast<Number>(0.70710678118654752);
  constexpr auto kDensity = static_cast<Number>(0.39894228040143268);  // 1 / sqrt(2 pi)
  const Number normal = Number{0.5} * std::erfc(-z * kHalfRoot);
  return {z * normal, normal + z * std::exp(Number{-0.5} * z * z) * kDensity};
}

// z s(2 u), u = sqrt(2 / pi) (z + 0.044715 z^3), s the logistic function.
template <class Number>
PAPERLAB_HD GeluNumbers<Number> gelu_tanh(Number z) {
  constexpr auto kScale = static_cast<Number>(2.0 * 0.79788456080286536);
  constexpr auto kCube = static_cast<Number>(0.044715);
  const Number u = kScale * (z + kCube * z * z * z);
  const Number e = std::exp(u < Number{0} ? u : -u);
  const Number s = (u < Number{0} ? e : Number{1}) / (e + Number{1});
  const Number rest = (u < Number{0} ? Number{1} : e) / (e + Number{1});  // 1 - s would cancel
  return {z * s, s + z * s * rest * kScale * (Number{1} + Number{3} * kCube * z * z)};
}

template <class Number>
PAPERLAB_HD GeluNumbers<Number> gelu_of(Number z, GeluForm form) {
  return form == GeluForm::kExact ? gelu_exact(z) : gelu_tanh(z);
}

}  // namespace paperlab::kernels::depth
