#pragma once
// Families of binary strings whose tokens are affine functions over GF(2) of free bits: all strings
// of a length, and the strings that a chain of thought appends to (its tokens are prefix xors).

#include <cstdint>

#include "paperlab/core/host_device.h"

namespace paperlab::kernels {

constexpr int kMaxStringLength = 30;  // chain of thought of 16 base tokens: 2 * 16 - 2

// String i of 2^num_bits has token parity(i & mask[l]) ^ flip[l] at position l (from 0) before the
// last one, and `query` at the last. Bit 0 is the label: y = +1 where it is 0.
// A group of length 1 has no bit and y = +1.
struct AffineGroup {
  int length = 0;
  int query = 0;
  int num_bits = 0;
  double weight = 0.0;  // of each string in the loss
  std::uint32_t mask[kMaxStringLength] = {};
  std::uint8_t flip[kMaxStringLength] = {};
};

PAPERLAB_HD inline int parity(std::uint32_t x) {
  x ^= x >> 16U;
  x ^= x >> 8U;
  x ^= x >> 4U;
  return static_cast<int>((0x6996U >> (x & 0xFU)) & 1U);
}

PAPERLAB_HD inline int affine_token(const AffineGroup& group, int l, std::uint32_t i) {
  return l == group.length - 1 ? group.query : parity(i & group.mask[l]) ^ group.flip[l];
}

PAPERLAB_HD inline int affine_label(const AffineGroup& group, std::uint32_t i) {
  return group.num_bits > 0 && (i & 1U) != 0 ? -1 : 1;
}

// All strings of a length that end with `query`, labelled as even pairs: y = +1 iff the first token
// equals the last, so the first token carries the label. Each length weighs 1 in all.
PAPERLAB_HD inline void set_even_pairs(AffineGroup& group, int length, int query) {
  group.length = length;
  group.query = query;
  group.num_bits = length - 1;
  group.weight = 1.0 / static_cast<double>(std::int64_t{1} << static_cast<unsigned>(length));
  for (int l = 0; l < kMaxStringLength; ++l) {
    group.mask[l] = l + 1 < length ? 1U << static_cast<unsigned>(l) : 0U;
    group.flip[l] = 0;
  }
  group.flip[0] = static_cast<std::uint8_t>(length > 1 ? query : 0);
}

inline AffineGroup even_pairs_group(int length, int query) {
  AffineGroup group;
  set_even_pairs(group, length, query);
  return group;
}

// parity(j & mask) for j = 8 block .. 8 block + 7, one bit each.
PAPERLAB_HD inline std::uint8_t lane_parities(std::uint32_t mask, std::uint32_t block) {
  // Byte m holds parity(j & m) for j = 0..7.
  constexpr std::uint64_t kPatterns = 0x963C5AF066CCAA00ULL;
  const auto lanes = static_cast<std::uint8_t>(kPatterns >> (8U * (mask & 7U)));
  return parity(block & (mask >> 3U)) != 0 ? static_cast<std::uint8_t>(~lanes) : lanes;
}

}  // namespace paperlab::kernels
