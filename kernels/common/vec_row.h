#pragma once
// A row of float32 or bfloat16 numbers, vector by vector; the last vector may be short. Include
// only from a kernel's cpu.cpp (see vec.h).

#include "kernels/common/vec_float.h"

namespace paperlab::kernels::PAPERLAB_ISA {
namespace {

// Calls body(first element, number of elements) for each vector of a row: kFloatLanes, or less.
template <class F>
inline void for_each_vector(std::int64_t width, F body) {
  std::int64_t d = 0;
  for (; d + kFloatLanes <= width; d += kFloatLanes) {
    body(d, std::int64_t{kFloatLanes});
  }
  if (d < width) {
    body(d, width - d);
  }
}

// The first `count` elements, then zeros; reads no others.
template <class T>
inline VecF load_row(const T* p, std::int64_t count) {
  T rest[kFloatLanes] = {};
  if (count < kFloatLanes) {
    __builtin_memcpy(rest, p, static_cast<std::size_t>(count) * sizeof(T));
    p = rest;
  }
  if constexpr (sizeof(T) == sizeof(float)) {
    return load(p);
  } else {
    return load_bfloat16(p);
  }
}

// The first `count` lanes; writes no others.
template <class T>
inline void store_row(T* p, std::int64_t count, VecF v) {
  T rest[kFloatLanes];
  T* to = count < kFloatLanes ? rest : p;
  if constexpr (sizeof(T) == sizeof(float)) {
    store(to, v);
  } else {
    store_bfloat16(to, v);
  }
  if (count < kFloatLanes) {
    __builtin_memcpy(p, rest, static_cast<std::size_t>(count) * sizeof(T));
  }
}

inline float sum_of_lanes(VecF v) {
  float sum = 0.0F;
  for (int lane = 0; lane < kFloatLanes; ++lane) {
    sum += v[lane];
  }
  return sum;
}

}  // namespace
}  // namespace paperlab::kernels::PAPERLAB_ISA
