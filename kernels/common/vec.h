#pragma once
// Eight doubles at a time, with the same operations in the same order on every instruction set, so
// that a kernel gives the same bits on each. Include only from a kernel's cpu.cpp: the namespace is
// the instruction set's, nothing here has external linkage, and no std header is pulled in.

#include <immintrin.h>
#include <cstddef>
#include <cstdint>

#ifndef PAPERLAB_ISA
#error "PAPERLAB_ISA must be generic, avx2 or avx512 (see paperlab_add_kernel)"
#endif

namespace paperlab::kernels::PAPERLAB_ISA {
namespace {

constexpr std::ptrdiff_t kLanes = 8;

#if defined(__AVX512F__)

struct Vec8d {
  __m512d v;
};
inline Vec8d set1(double x) { return {_mm512_set1_pd(x)}; }
inline Vec8d load(const double* p) { return {_mm512_loadu_pd(p)}; }
// The first `count` (1..8) doubles and zeros; reads no others.
inline Vec8d load_first(const double* p, std::ptrdiff_t count) {
  return {_mm512_maskz_loadu_pd(static_cast<__mmask8>(0xFF >> (kLanes - count)), p)};
}
inline void store(double* p, Vec8d a) { _mm512_storeu_pd(p, a.v); }
inline Vec8d operator+(Vec8d a, Vec8d b) { return {_mm512_add_pd(a.v, b.v)}; }
inline Vec8d operator-(Vec8d a, Vec8d b) { return {_mm512_sub_pd(a.v, b.v)}; }
inline Vec8d operator*(Vec8d a, Vec8d b) { return {_mm512_mul_pd(a.v, b.v)}; }
inline Vec8d operator/(Vec8d a, Vec8d b) { return {_mm512_div_pd(a.v, b.v)}; }
inline Vec8d fma(Vec8d a, Vec8d b, Vec8d c) { return {_mm512_fmadd_pd(a.v, b.v, c.v)}; }
// Lane i is a's where bit i of `lanes` is set, else b's.
inline Vec8d select(std::uint8_t lanes, Vec8d a, Vec8d b) {
  return {_mm512_mask_blend_pd(lanes, b.v, a.v)};
}
inline std::uint8_t greater(Vec8d a, Vec8d b) { return _mm512_cmp_pd_mask(a.v, b.v, _CMP_GT_OQ); }
inline std::uint8_t unordered(Vec8d a) { return _mm512_cmp_pd_mask(a.v, a.v, _CMP_UNORD_Q); }
// Adds the low 12 bits of n's representation to a's exponent.
inline Vec8d add_exponent(Vec8d a, Vec8d n) {  // GCC 12 warns about its own _mm512_slli_epi64
  using Bits = std::uint64_t __attribute__((vector_size(64)));
  return {(__m512d)((Bits)a.v + ((Bits)n.v << 52U))};
}

#elif defined(__AVX2__) && defined(__FMA__)

struct Vec8d {
  __m256d lo, hi;
};
inline Vec8d set1(double x) { return {_mm256_set1_pd(x), _mm256_set1_pd(x)}; }
inline Vec8d load(const double* p) { return {_mm256_loadu_pd(p), _mm256_loadu_pd(p + 4)}; }
inline void store(double* p, Vec8d a) {
  _mm256_storeu_pd(p, a.lo);
  _mm256_storeu_pd(p + 4, a.hi);
}
inline Vec8d operator+(Vec8d a, Vec8d b) {
  return {_mm256_add_pd(a.lo, b.lo), _mm256_add_pd(a.hi, b.hi)};
}
inline Vec8d operator-(Vec8d a, Vec8d b) {
  return {_mm256_sub_pd(a.lo, b.lo), _mm256_sub_pd(a.hi, b.hi)};
}
inline Vec8d operator*(Vec8d a, Vec8d b) {
  return {_mm256_mul_pd(a.lo, b.lo), _mm256_mul_pd(a.hi, b.hi)};
}
inline Vec8d operator/(Vec8d a, Vec8d b) {
  return {_mm256_div_pd(a.lo, b.lo), _mm256_div_pd(a.hi, b.hi)};
}
inline Vec8d fma(Vec8d a, Vec8d b, Vec8d c) {
  return {_mm256_fmadd_pd(a.lo, b.lo, c.lo), _mm256_fmadd_pd(a.hi, b.hi, c.hi)};
}
inline __m256d lane_mask(unsigned lanes) {  // bit i of `lanes` fills lane i
  const __m256i bit = _mm256_setr_epi64x(1, 2, 4, 8);
  const __m256i on = _mm256_and_si256(_mm256_set1_epi64x(static_cast<long long>(lanes)), bit);
  return _mm256_castsi256_pd(_mm256_cmpeq_epi64(on, bit));
}
inline Vec8d load_first(const double* p, std::ptrdiff_t count) {
  const unsigned lanes = 0xFFU >> static_cast<unsigned>(kLanes - count);
  return {_mm256_maskload_pd(p, _mm256_castpd_si256(lane_mask(lanes))),
          _mm256_maskload_pd(p + 4, _mm256_castpd_si256(lane_mask(lanes >> 4U)))};
}
inline Vec8d select(std::uint8_t lanes, Vec8d a, Vec8d b) {
  return {_mm256_blendv_pd(b.lo, a.lo, lane_mask(lanes)),
          _mm256_blendv_pd(b.hi, a.hi, lane_mask(lanes >> 4U))};
}
inline std::uint8_t lane_bits(__m256d lo, __m256d hi) {
  return static_cast<std::uint8_t>(_mm256_movemask_pd(lo) | (_mm256_movemask_pd(hi) << 4));
}
inline std::uint8_t greater(Vec8d a, Vec8d b) {
  return lane_bits(_mm256_cmp_pd(a.lo, b.lo, _CMP_GT_OQ), _mm256_cmp_pd(a.hi, b.hi, _CMP_GT_OQ));
}
inline std::uint8_t unordered(Vec8d a) {
  return lane_bits(_mm256_cmp_pd(a.lo, a.lo, _CMP_UNORD_Q),
                   _mm256_cmp_pd(a.hi, a.hi, _CMP_UNORD_Q));
}
inline __m256d add_exponent(__m256d a, __m256d n) {
  return _mm256_castsi256_pd(
      _mm256_add_epi64(_mm256_castpd_si256(a), _mm256_slli_epi64(_mm256_castpd_si256(n), 52)));
}
inline Vec8d add_exponent(Vec8d a, Vec8d n) {
  return {add_exponent(a.lo, n.lo), add_exponent(a.hi, n.hi)};
}

#else

struct Vec8d {
  double v[kLanes];
};
template <class F>
inline Vec8d each_lane(F value) {
  Vec8d out;
  for (int i = 0; i < kLanes; ++i) {
    out.v[i] = value(i);
  }
  return out;
}
template <class F>
inline std::uint8_t lanes_where(F holds) {
  unsigned bits = 0;
  for (int i = 0; i < kLanes; ++i) {
    bits |= (holds(i) ? 1U : 0U) << static_cast<unsigned>(i);
  }
  return static_cast<std::uint8_t>(bits);
}
inline Vec8d set1(double x) {
  return each_lane([=](int) { return x; });
}
inline Vec8d load(const double* p) {
  return each_lane([=](int i) { return p[i]; });
}
inline Vec8d load_first(const double* p, std::ptrdiff_t count) {
  return each_lane([=](int i) { return i < count ? p[i] : 0.0; });
}
inline void store(double* p, Vec8d a) { __builtin_memcpy(p, a.v, sizeof(a.v)); }
inline Vec8d operator+(Vec8d a, Vec8d b) {
  return each_lane([&](int i) { return a.v[i] + b.v[i]; });
}
inline Vec8d operator-(Vec8d a, Vec8d b) {
  return each_lane([&](int i) { return a.v[i] - b.v[i]; });
}
inline Vec8d operator*(Vec8d a, Vec8d b) {
  return each_lane([&](int i) { return a.v[i] * b.v[i]; });
}
inline Vec8d operator/(Vec8d a, Vec8d b) {
  return each_lane([&](int i) { return a.v[i] / b.v[i]; });
}
inline Vec8d fma(Vec8d a, Vec8d b, Vec8d c) {
  return each_lane([&](int i) { return __builtin_fma(a.v[i], b.v[i], c.v[i]); });
}
inline Vec8d select(std::uint8_t lanes, Vec8d a, Vec8d b) {
  return each_lane([&](int i) { return ((lanes >> i) & 1) != 0 ? a.v[i] : b.v[i]; });
}
inline std::uint8_t greater(Vec8d a, Vec8d b) {
  return lanes_where([&](int i) { return a.v[i] > b.v[i]; });
}
inline std::uint8_t unordered(Vec8d a) {
  return lanes_where([&](int i) { return a.v[i] != a.v[i]; });
}
inline Vec8d add_exponent(Vec8d a, Vec8d n) {
  return each_lane([&](int i) {
    const auto bits = __builtin_bit_cast(std::uint64_t, a.v[i]) +
                      (__builtin_bit_cast(std::uint64_t, n.v[i]) << 52U);
    return __builtin_bit_cast(double, bits);
  });
}

#endif

inline Vec8d zero() { return set1(0.0); }

// ((0 + 1) + (2 + 3)) + ((4 + 5) + (6 + 7))
inline double sum(Vec8d a) {
  double x[kLanes];
  store(x, a);
  return ((x[0] + x[1]) + (x[2] + x[3])) + ((x[4] + x[5]) + (x[6] + x[7]));
}

}  // namespace
}  // namespace paperlab::kernels::PAPERLAB_ISA
