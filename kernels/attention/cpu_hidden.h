#pragma once
// Sums over a key block that some rows of a vector see and others do not: a weight of 0 hides every
// number but NaN and infinity, which must not reach rows that do not see their key. Include only
// from cpu.cpp or cpu_bfloat16.cpp.

#include "kernels/attention/cpu_panels.h"

namespace paperlab::kernels::PAPERLAB_ISA {
namespace {

// Whether all numbers of a panel's first rows are finite: then 0 times them is 0.
template <class Word>
inline bool is_finite(const Panel& panel, std::int64_t num_rows, std::int64_t width) {
  VecF sums[4] = {zero(), zero(), zero(), zero()};
  const auto add = [&](const float* p, std::int64_t i) {
    sums[i] = Word::multiply_add(load(p), zero(), sums[i]);
  };
  const std::int64_t whole = width / kFloatLanes * kFloatLanes;
  for (std::int64_t n = 0; n < num_rows; ++n) {
    const float* row = panel.row + n * panel.stride;
    std::int64_t d = 0;
    for (; d + 4 * kFloatLanes <= whole; d += 4 * kFloatLanes) {
#pragma GCC unroll 4
      for (std::int64_t i = 0; i < 4; ++i) {
        add(row + d + i * kFloatLanes, i);
      }
    }
    for (; d < whole; d += kFloatLanes) {
      add(row + d, 0);
    }
    if (d < width) {  // behind a row there may be no memory
      float rest[kFloatLanes] = {};
      copy_row(row + d, width - d, rest);
      add(rest, 0);
    }
  }
  const VecF all = (sums[0] + sums[1]) + (sums[2] + sums[3]);
  return fold_lanes(all, [](VecF a, VecF b) { return a + b; }) == 0.0F;
}

// A word of which only its number i is left.
template <class Word>
inline float only(float word, std::int64_t i) {
  if constexpr (Word::kNumbers == 1) {
    return word;
  } else {
    std::uint32_t bits = 0;
    __builtin_memcpy(&bits, &word, sizeof(bits));
    bits &= i == 0 ? 0x0000FFFFU : 0xFFFF0000U;
    __builtin_memcpy(&word, &bits, sizeof(bits));
    return word;
  }
}

// sum + value * weight for the rows of vector v, of the numbers of a word whose keys they see.
template <class Word>
inline VecF add_seen(const BlockMask& mask, std::int64_t v, std::int64_t word, float value,
                     VecF weight, VecF sum) {
  const std::int64_t key = word * Word::kNumbers;
  const VecF all = Word::multiply_add(set1(value), weight, sum);
  if constexpr (Word::kNumbers == 1) {
    return where_seen(mask, v, key, all, sum);
  } else {
    const VecF first = Word::multiply_add(set1(only<Word>(value, 0)), weight, sum);
    const VecF second = Word::multiply_add(set1(only<Word>(value, 1)), weight, sum);
    return where_seen(mask, v, key, where_seen(mask, v, key + 1, all, first),
                      where_seen(mask, v, key + 1, second, sum));
  }
}

// weighted_sums of keys with numbers that are not finite: the same sums in the same order, without
// the keys that a row does not see.
template <class Word>
inline __attribute__((noinline)) void seen_sums(const BlockMask& mask, const Panel& panel,
                                                std::int64_t width, const float* weights,
                                                std::int64_t num_vectors, const float* keep,
                                                float* sums) {
  for (std::int64_t v = 0; v < num_vectors; ++v) {
    const std::int64_t lane = v * kFloatLanes;
    const std::int64_t count = num_words<Word>(mask.limits.of[v]);
    for (std::int64_t d = 0; d < width; ++d) {
      VecF sum = zero();
      for (std::int64_t n = 0; n < count; ++n) {
        sum = add_seen<Word>(mask, v, n, panel.row[n * panel.stride + d],
                             load(weights + n * kTileRows + lane), sum);
      }
      float* at = sums + d * kTileRows + lane;
      store(at, fma(load(at), load(keep + lane), sum));
    }
  }
}

// sums[d][row] = keep[row] sums[d][row] + the weighted numbers d of the block's keys that the row
// sees. The panel begins with the mask's part, whose words along the keys are its rows; weights is
// [words][kTileRows], 0 where a row does not see a key.
template <class Word>
inline void weighted_block(const BlockMask& mask, const Panel& panel, std::int64_t num_keys,
                           std::int64_t width, const float* weights, std::int64_t num_vectors,
                           const float* keep, float* sums) {
  const bool hides = mask.is_needed || num_keys % Word::kNumbers != 0;
  if (hides && !is_finite<Word>(panel, num_words<Word>(num_keys), width)) {
    seen_sums<Word>(mask, panel, width, weights, num_vectors, keep, sums);
    return;
  }
  weighted_sums<Word>(panel.row, panel.stride, width, weights, in_words<Word>(mask.limits),
                      num_vectors, keep, sums);
}

}  // namespace
}  // namespace paperlab::kernels::PAPERLAB_ISA
