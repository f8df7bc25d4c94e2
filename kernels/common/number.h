#pragma once
// Numbers of any dtype in memory as float64: how references read and write.

#include <cmath>
#include <cstdint>
#include <cstring>

#include "kernels/common/tensor_view.h"

namespace paperlab::kernels {

// Element `at` of `data`.
inline double load_number(const void* data, DType dtype, std::int64_t at) {
  if (dtype == DType::kFloat64) {
    return static_cast<const double*>(data)[at];
  }
  if (dtype == DType::kFloat32) {
    return static_cast<const float*>(data)[at];
  }
  const std::uint32_t bits = std::uint32_t{static_cast<const BFloat16*>(data)[at].bits} << 16U;
  float value = 0.0F;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

// To the nearest, ties to even; bfloat16 by way of float32.
inline void store_number(void* data, DType dtype, std::int64_t at, double value) {
  if (dtype == DType::kFloat64) {
    static_cast<double*>(data)[at] = value;
    return;
  }
  const auto narrow = static_cast<float>(value);
  if (dtype == DType::kFloat32) {
    static_cast<float*>(data)[at] = narrow;
    return;
  }
  std::uint32_t bits = 0;
  std::memcpy(&bits, &narrow, sizeof(bits));
  const std::uint32_t rounded =
      std::isnan(narrow) ? bits | 0x400000U : bits + 0x7FFFU + ((bits >> 16U) & 1U);
  static_cast<BFloat16*>(data)[at] = {static_cast<std::uint16_t>(rounded >> 16U)};
}

// The dtype of statistics (log-sum-exp, inverse root mean square) of tensors of `dtype`.
inline DType statistics_dtype(DType dtype) {
  return dtype == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32;
}

}  // namespace paperlab::kernels
