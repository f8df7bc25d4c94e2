#pragma once
// The vectors of both accumulator types, under the same names. Include only from cpu.cpp.

#include "kernels/common/vec_row.h"

namespace paperlab::kernels::PAPERLAB_ISA {
namespace {

using VecD = double __attribute__((vector_size(4 * kFloatLanes)));

inline VecD load(const double* p) {
  VecD v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}
inline void store(double* p, VecD v) { __builtin_memcpy(p, &v, sizeof(v)); }
inline VecD set1(double x) { return x - VecD{}; }
#if defined(__AVX512F__)
inline VecD fma(VecD a, VecD b, VecD c) { return _mm512_fmadd_pd(a, b, c); }
#elif defined(__AVX2__) && defined(__FMA__)
inline VecD fma(VecD a, VecD b, VecD c) { return _mm256_fmadd_pd(a, b, c); }
#else
inline VecD fma(VecD a, VecD b, VecD c) { return a * b + c; }
#endif

template <class T>
struct LanesOf;
template <>
struct LanesOf<float> {
  using Vec = VecF;
  static constexpr std::int64_t kCount = kFloatLanes;
};
template <>
struct LanesOf<double> {
  using Vec = VecD;
  static constexpr std::int64_t kCount = kFloatLanes / 2;
};

}  // namespace
}  // namespace paperlab::kernels::PAPERLAB_ISA
