#include "paperlab/data/permutation.h"

#include <bit>
#include <string>

#include "paperlab/core/error.h"
#include "paperlab/core/rng.h"

namespace paperlab::data {
namespace {

constexpr std::uint64_t kMaxSize = std::uint64_t{1} << 62;  // a half then fits 32 bits
constexpr int kSmallBits = 8;

// The permutation of 0..2^bits - 1. A value is two halves, the lower one being as wide or one bit
// wider; each is changed by a function of the other in turn, which can be undone.
class Feistel {
 public:
  Feistel(std::uint64_t seed, std::uint64_t stream, int bits)
      : seed_(seed),
        stream_(stream),
        low_bits_((bits + 1) / 2),
        high_bits_(bits / 2),
        num_rounds_(bits <= kSmallBits ? 16 : 8) {}

  std::uint64_t operator()(std::uint64_t value) const {
    std::uint64_t low = value & mask(low_bits_);
    std::uint64_t high = value >> low_bits_;
    for (std::uint64_t round = 0; round < num_rounds_; round += 2) {
      high ^= random(round, low) & mask(high_bits_);
      low ^= random(round + 1, high) & mask(low_bits_);
    }
    return high << low_bits_ | low;
  }

 private:
  static std::uint64_t mask(int bits) { return (std::uint64_t{1} << bits) - 1; }

  std::uint64_t random(std::uint64_t round, std::uint64_t half) const {
    return philox_block(seed_, stream_, round << 32 | half).word[0];
  }

  std::uint64_t seed_;
  std::uint64_t stream_;
  int low_bits_;
  int high_bits_;
  std::uint64_t num_rounds_;  // even; halves of a bit or two mix slowly (a chi-square test tells)
};

}  // namespace

std::uint64_t permuted(std::uint64_t seed, std::uint64_t stream, std::uint64_t n, std::uint64_t i) {
  require<ValueError>(n >= 1 && n <= kMaxSize, "permuted", "n in 1..2^62", std::to_string(n));
  require<ValueError>(i < n, "permuted", "i below n = " + std::to_string(n), std::to_string(i));
  const Feistel feistel(seed, stream, static_cast<int>(std::bit_width(n - 1)));
  // The cycle of i comes back to i, which is below n, so this ends; on average after two rounds.
  do {
    i = feistel(i);
  } while (i >= n);
  return i;
}

}  // namespace paperlab::data
