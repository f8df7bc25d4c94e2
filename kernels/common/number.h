#pragma once
// Numbers of any dtype in memory as float64: how references read and write.

#include <cmath>
#include <cstdint>
#include <cstring>

#include "kernels/common/tensor_view.h"

namespace paperlab::kernels {

// The upper half of a float32: to the nearest, ties to even.
inline BFloat16 to_bfloat16(float value) {
  std::uint32_t bits = 0;
  std::memcpy(&bits, &value, sizeof(bits));
  const std::uint32_t rounded =
      std::isnan(value) ? bits | 0x400000U : bits + 0x7FFFU + ((bits >> 16U) & 1U);
  return {static_cast<std::uint16_t>(rounded >> 16U)};
}

inline float from_bfloat16(BFloat16 number) {
  const std::uint32_t bits = std::uint32_t{number.bits} << 16U;
  float value = 0.0F;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

// To the nearest, ties to even; infinity from 65520 on. Exponents below -14 share the steps of
// 2^-24.
inline Float16 to_float16(float value) {
  std::uint32_t bits = 0;
  std::memcpy(&bits, &value, sizeof(bits));
  const auto sign = static_cast<std::uint16_t>((bits >> 16U) & 0x8000U);
  const float size = std::fabs(value);
  std::uint32_t rounded = 0;
  if (std::isnan(value)) {
    rounded = 0x7E00U;
  } else if (size >= 65520.0F) {
    rounded = 0x7C00U;
  } else if (size < 0x1p-14F) {
    rounded = static_cast<std::uint32_t>(std::nearbyint(size * 0x1p24F));
  } else {
    bits &= 0x7FFFFFFFU;  // 13 bits fewer in the fraction, another bias in the exponent
    rounded = ((bits + 0xFFFU + ((bits >> 13U) & 1U)) >> 13U) - ((127U - 15U) << 10U);
  }
  return {static_cast<std::uint16_t>(sign | rounded)};
}

inline float from_float16(Float16 number) {
  const std::uint32_t exponent = (number.bits >> 10U) & 0x1FU;
  const auto fraction = static_cast<float>(number.bits & 0x3FFU);
  float size = fraction * 0x1p-24F;
  if (exponent == 31U) {
    size = fraction > 0.0F ? NAN : HUGE_VALF;
  } else if (exponent > 0U) {
    size = std::ldexp(fraction + 1024.0F, static_cast<int>(exponent) - 25);
  }
  return (number.bits & 0x8000U) != 0U ? -size : size;
}

// Element `at` of `data`.
inline double load_number(const void* data, DType dtype, std::int64_t at) {
  if (dtype == DType::kFloat64) {
    return static_cast<const double*>(data)[at];
  }
  if (dtype == DType::kFloat32) {
    return static_cast<const float*>(data)[at];
  }
  return dtype == DType::kFloat16 ? from_float16(static_cast<const Float16*>(data)[at])
                                  : from_bfloat16(static_cast<const BFloat16*>(data)[at]);
}

// To the nearest, ties to even; halves by way of float32.
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
  if (dtype == DType::kFloat16) {
    static_cast<Float16*>(data)[at] = to_float16(narrow);
  } else {
    static_cast<BFloat16*>(data)[at] = to_bfloat16(narrow);
  }
}

// The dtype of statistics (log-sum-exp, inverse root mean square) of tensors of `dtype`.
inline DType statistics_dtype(DType dtype) {
  return dtype == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32;
}

}  // namespace paperlab::kernels
