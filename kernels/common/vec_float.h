#pragma once
// Vectors of float32 for kernels whose rows lie in the lanes: the widest of the instruction set,
// and each lane is computed alone, so that results do not depend on the width. Include only from a
// kernel's cpu.cpp (see vec.h).

#include <immintrin.h>
#include <cstddef>
#include <cstdint>

#ifndef PAPERLAB_ISA
#error "PAPERLAB_ISA must be generic, avx2 or avx512 (see paperlab_add_kernel)"
#endif

namespace paperlab::kernels::PAPERLAB_ISA {
namespace {

#if defined(__AVX512F__)
constexpr std::ptrdiff_t kFloatLanes = 16;
#elif defined(__AVX2__) && defined(__FMA__)
constexpr std::ptrdiff_t kFloatLanes = 8;
#else
constexpr std::ptrdiff_t kFloatLanes = 4;
#endif

// Arithmetic operators are the compiler's.
using VecF = float __attribute__((vector_size(4 * kFloatLanes)));
using VecI = std::int32_t __attribute__((vector_size(4 * kFloatLanes)));
using VecU = std::uint32_t __attribute__((vector_size(4 * kFloatLanes)));

inline VecF load(const float* p) {
  VecF v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}
inline VecI load(const std::int32_t* p) {
  VecI v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}
inline void store(float* p, VecF v) { __builtin_memcpy(p, &v, sizeof(v)); }
inline VecF set1(float x) { return x - VecF{}; }
inline VecI set1(std::int32_t x) { return x - VecI{}; }
inline VecF zero() { return VecF{}; }

#if defined(__AVX512F__)
inline VecF fma(VecF a, VecF b, VecF c) { return _mm512_fmadd_ps(a, b, c); }
// b where either is a NaN.
inline VecF max(VecF a, VecF b) {  // GCC 12 warns about its own _mm512_max_ps
  return _mm512_maskz_max_ps(static_cast<__mmask16>(0xFFFF), a, b);
}
#elif defined(__AVX2__) && defined(__FMA__)
inline VecF fma(VecF a, VecF b, VecF c) { return _mm256_fmadd_ps(a, b, c); }
inline VecF max(VecF a, VecF b) { return _mm256_max_ps(a, b); }
#else
// Two roundings: a fused operation in software would cost a hundred times as much.
inline VecF fma(VecF a, VecF b, VecF c) { return a * b + c; }
inline VecF max(VecF a, VecF b) { return a > b ? a : b; }
#endif

// e^x for x <= 0 (any x up to 88): 2^n p(r) with n = round(x log2 e), r = x log2 e - n, |r| <= 1/2,
// and p of degree 6 with relative error below 2e-9 before rounding. Results below the smallest
// normal number are 0; NaN stays NaN.
inline VecF exp(VecF x) {
  const VecF log2e = set1(0x1.715476p0F);
  const VecF magic = set1(0x1.8p23F + 127.0F);  // the sum's low bits hold n + 127, 2^n's exponent
  const VecF shifted = fma(x, log2e, magic);
  const VecF r = fma(x, log2e, magic - shifted);
  VecF p = set1(1.5353362e-4F);
  p = fma(p, r, set1(1.3398874e-3F));
  p = fma(p, r, set1(9.6184374e-3F));
  p = fma(p, r, set1(5.5503325e-2F));
  p = fma(p, r, set1(2.4022648e-1F));
  p = fma(p, r, set1(6.9314720e-1F));
  p = fma(p, r, set1(1.0F));
  return x < set1(-87.3365F) ? zero() : p * (VecF)((VecU)shifted << 23U);
}

// Natural logarithm of normal x > 0: exponent and atanh series, error below 2 ulp of max(1,
// |result|).
inline VecF log(VecF x) {
  // x = 2^n f with f in [sqrt(1/2), sqrt(2)): n is what rounds the exponent there.
  const VecU shifted = (VecU)x - (VecU)set1(std::int32_t{0x3F3504F3});  // sqrt(1/2)
  const VecI n = (VecI)shifted >> 23;
  const VecF f = (VecF)((VecU)x - ((VecU)n << 23U));
  const VecF t = (f - 1.0F) / (f + 1.0F);  // log f = 2 atanh t, |t| < 0.1716
  const VecF t2 = t * t;
  VecF p = set1(2.0F / 9.0F);
  p = fma(p, t2, set1(2.0F / 7.0F));
  p = fma(p, t2, set1(2.0F / 5.0F));
  p = fma(p, t2, set1(2.0F / 3.0F));
  p = fma(p * t2, t, t + t);
  return fma(__builtin_convertvector(n, VecF), set1(0x1.62e43p-1F), p);
}

// Lane i is lane at[i] of a and b, whose lanes are numbered on from a's. `at` should be a constant.
inline VecF shuffled(VecF a, VecF b, VecI at) {
#if defined(__clang__)
  VecF out;
  for (int i = 0; i < kFloatLanes; ++i) {
    out[i] = at[i] < kFloatLanes ? a[at[i]] : b[at[i] - kFloatLanes];
  }
  return out;
#else
  return __builtin_shuffle(a, b, at);
#endif
}

// Transposes a square of kFloatLanes x kFloatLanes: rows src_stride and dst_stride apart.
inline void transpose_square(const float* src, std::ptrdiff_t src_stride, float* dst,
                             std::ptrdiff_t dst_stride) {
  constexpr std::ptrdiff_t kHalf = kFloatLanes / 2;
  VecI low;
  VecI high;
  for (int i = 0; i < kFloatLanes; ++i) {  // constants
    low[i] = i / 2 + (i % 2 != 0 ? static_cast<int>(kFloatLanes) : 0);
    high[i] = low[i] + static_cast<int>(kHalf);
  }
  VecF rows[kFloatLanes];
#pragma GCC unroll 16
  for (int i = 0; i < kFloatLanes; ++i) {
    rows[i] = load(src + i * src_stride);
  }
  // log2(lanes) perfect shuffles of the rows move element (i, j) to (j, i).
#pragma GCC unroll 4
  for (std::ptrdiff_t step = 1; step < kFloatLanes; step *= 2) {
    VecF next[kFloatLanes];
#pragma GCC unroll 8
    for (std::ptrdiff_t i = 0; i < kHalf; ++i) {
      next[2 * i] = shuffled(rows[i], rows[i + kHalf], low);
      next[2 * i + 1] = shuffled(rows[i], rows[i + kHalf], high);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kFloatLanes; ++i) {
      rows[i] = next[i];
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kFloatLanes; ++i) {
    store(dst + i * dst_stride, rows[i]);
  }
}

// A bfloat16 number is the upper half of a float32.
inline VecF load_bfloat16(const std::uint16_t* p) {
  using Half = std::uint16_t __attribute__((vector_size(2 * kFloatLanes)));
  Half bits;
  __builtin_memcpy(&bits, p, sizeof(bits));
  return (VecF)(__builtin_convertvector(bits, VecU) << 16U);
}
// To the nearest, ties to even; NaN stays NaN.
inline void store_bfloat16(std::uint16_t* p, VecF v) {
  using Half = std::uint16_t __attribute__((vector_size(2 * kFloatLanes)));
  const VecU bits = (VecU)v;
  const VecU rounded = (bits + 0x7FFFU + ((bits >> 16U) & 1U)) >> 16U;
  const VecU quiet = (bits >> 16U) | 0x40U;
  const Half half = __builtin_convertvector(v != v ? quiet : rounded, Half);
  __builtin_memcpy(p, &half, sizeof(half));
}

}  // namespace
}  // namespace paperlab::kernels::PAPERLAB_ISA
