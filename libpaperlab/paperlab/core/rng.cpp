#include "paperlab/core/rng.h"

#include <cmath>
#include <numbers>

namespace paperlab {

double philox_normal(std::uint64_t seed, std::uint64_t stream, std::uint64_t i) {
  const PhiloxBlock block = philox_block(seed, stream, i);
  const double radius_uniform = uniform_of_words(block.word[0], block.word[1]);
  const double angle_uniform = uniform_of_words(block.word[2], block.word[3]);
  return std::sqrt(-2.0 * std::log(radius_uniform)) *
         std::cos(2.0 * std::numbers::pi * angle_uniform);
}

std::vector<double> philox_normals(std::uint64_t seed, std::uint64_t stream, std::uint64_t count) {
  std::vector<double> out(count);
  for (std::uint64_t i = 0; i < count; ++i) {
    out[i] = philox_normal(seed, stream, i);
  }
  return out;
}

}  // namespace paperlab
