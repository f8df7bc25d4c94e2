#pragma once
/// \file
/// Counter-based random numbers: element i of stream s depends on (seed, s, i) alone.
/// Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011
/// (Philox4x32-10).

#include <cstdint>
#include <vector>

#include "paperlab/core/export.h"
#include "paperlab/core/host_device.h"

namespace paperlab {

struct PhiloxBlock {
  std::uint32_t word[4];
};

/// Philox4x32-10 of a 128-bit counter and a 64-bit key.
PAPERLAB_HD inline PhiloxBlock philox4x32(PhiloxBlock counter, std::uint32_t key0,
                                          std::uint32_t key1) {
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t product0 = std::uint64_t{0xD2511F53U} * counter.word[0];
    const std::uint64_t product1 = std::uint64_t{0xCD9E8D57U} * counter.word[2];
    counter = {{static_cast<std::uint32_t>(product1 >> 32U) ^ counter.word[1] ^ key0,
                static_cast<std::uint32_t>(product1),
                static_cast<std::uint32_t>(product0 >> 32U) ^ counter.word[3] ^ key1,
                static_cast<std::uint32_t>(product0)}};
    key0 += 0x9E3779B9U;
    key1 += 0xBB67AE85U;
  }
  return counter;
}

/// Block `block` of stream `stream`: the counter is (block, stream), the key is the seed.
PAPERLAB_HD inline PhiloxBlock philox_block(std::uint64_t seed, std::uint64_t stream,
                                            std::uint64_t block) {
  return philox4x32(
      {{static_cast<std::uint32_t>(block), static_cast<std::uint32_t>(block >> 32U),
        static_cast<std::uint32_t>(stream), static_cast<std::uint32_t>(stream >> 32U)}},
      static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32U));
}

/// The uniform double in (0, 1) made of 52 bits of two words; never 0 or 1.
PAPERLAB_HD inline double uniform_of_words(std::uint32_t low, std::uint32_t high) {
  const std::uint64_t bits = (std::uint64_t{high} << 32U | low) >> 12U;
  return (static_cast<double>(bits) + 0.5) * 0x1p-52;
}

/// Uniform number i of stream s, in (0, 1): two words, half a block each.
PAPERLAB_HD inline double philox_uniform(std::uint64_t seed, std::uint64_t stream,
                                         std::uint64_t i) {
  const PhiloxBlock block = philox_block(seed, stream, i / 2);
  const std::uint32_t half = i % 2 == 0 ? 0 : 2;
  return uniform_of_words(block.word[half], block.word[half + 1]);
}

/// Standard normal number i of stream s, by Box and Muller from one block.
PAPERLAB_API double philox_normal(std::uint64_t seed, std::uint64_t stream, std::uint64_t i);

/// Standard normal numbers 0..count-1 of stream s.
PAPERLAB_API std::vector<double> philox_normals(std::uint64_t seed, std::uint64_t stream,
                                                std::uint64_t count);

}  // namespace paperlab
