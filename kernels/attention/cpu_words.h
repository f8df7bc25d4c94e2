#pragma once
// What a register lane multiplies: one float32 number, or two neighbouring bfloat16 numbers whose
// products are added in float32 (vdpbf16ps). Memory that holds words is typed float. Include only
// from cpu.cpp or cpu_bfloat16.cpp.

#include "kernels/common/vec_float.h"

namespace paperlab::kernels::PAPERLAB_ISA {
namespace {

struct FloatWord {
  static constexpr std::int64_t kNumbers = 1;
  static VecF multiply_add(VecF a, VecF b, VecF c) { return fma(a, b, c); }
};

#if defined(__AVX512BF16__)
struct PairWord {
  static constexpr std::int64_t kNumbers = 2;
  static VecF multiply_add(VecF a, VecF b, VecF c) {
    return _mm512_dpbf16_ps(c, (__m512bh)a, (__m512bh)b);
  }
};
#endif

template <class Word>
constexpr std::int64_t num_words(std::int64_t num_numbers) {
  return (num_numbers + Word::kNumbers - 1) / Word::kNumbers;
}

// The upper halves of x and y, rounded to bfloat16, as words (x, y). NaN stays NaN as long as its
// upper half isn't all ones, which no operation makes.
inline VecF bfloat16_pairs(VecF x, VecF y) {
  const auto rounded = [](VecF v) {
    const VecU bits = (VecU)v;
    return bits + 0x7FFFU + ((bits >> 16U) & 1U);
  };
  return (VecF)((rounded(x) >> 16U) | (rounded(y) & 0xFFFF0000U));
}

}  // namespace
}  // namespace paperlab::kernels::PAPERLAB_ISA
