#include "tests/support/one_layer_inputs.h"

#include <cmath>
#include <cstddef>
#include <limits>

#include "kernels/one_layer_fold/tile.h"
#include "paperlab/core/rng.h"

namespace paperlab::test {

using kernels::AffineGroup;

OneLayerInputs::OneLayerInputs(const OneLayerCase& of) : case_(of) {
  const auto width = 2 * static_cast<std::size_t>(of.max_length);
  u = philox_normals(of.seed, 0, width);
  w = philox_normals(of.seed, 1, width * width);
  for (double& x : u) {
    x *= of.u_std;
  }
  for (double& x : w) {
    x *= of.w_std;
  }
}

kernels::OneLayerParameters OneLayerInputs::parameters() const {
  return {case_.max_length, case_.attention_scale, u.data(), w.data()};
}

kernels::OneLayerGradient OneLayerInputs::gradient() {
  u_gradient.assign(u.size(), std::numeric_limits<double>::quiet_NaN());
  w_gradient.assign(w.size(), std::numeric_limits<double>::quiet_NaN());
  return {u_gradient.data(), w_gradient.data()};
}

std::vector<AffineGroup> even_pairs_groups(int max_length) {
  std::vector<AffineGroup> groups;
  for (int length = 1; length <= max_length; ++length) {
    for (int query = 0; query < 2; ++query) {
      AffineGroup group{length, query, length - 1, std::ldexp(1.0, -length), {}, {}};
      for (int l = 0; l + 1 < length; ++l) {
        group.mask[l] = 1U << static_cast<unsigned>(l);
      }
      group.flip[0] = static_cast<std::uint8_t>(length > 1 ? query : 0);
      groups.push_back(group);
    }
  }
  return groups;
}

std::vector<AffineGroup> with_uneven_weights(std::vector<AffineGroup> groups) {
  for (std::size_t g = 0; g < groups.size(); ++g) {
    groups[g].weight *= 0.25 + philox_uniform(/*seed=*/11, /*stream=*/0, g);
  }
  return groups;
}

std::vector<AffineGroup> random_groups(int max_bits, std::uint64_t seed) {
  std::vector<AffineGroup> groups;
  for (int bits = 1; bits <= max_bits; ++bits) {
    AffineGroup group{bits + 3, bits % 2, bits, std::ldexp(1.0, -bits), {}, {}};
    const kernels::FoldShape shape = kernels::fold_shape(bits);
    for (int l = 0; l + 1 < group.length; ++l) {
      const auto element = static_cast<std::uint64_t>(l);
      const PhiloxBlock random = philox_block(seed, static_cast<std::uint64_t>(bits), element);
      const std::uint32_t rows = (1U << static_cast<unsigned>(shape.row_bits)) - 1U;
      const std::uint32_t all = (1U << static_cast<unsigned>(bits)) - 1U;
      group.mask[l] = random.word[0] & (random.word[1] % 2 == 0 ? rows : all & ~rows);
      group.flip[l] = static_cast<std::uint8_t>(random.word[2] % 2);
    }
    groups.push_back(group);
  }
  return groups;
}

}  // namespace paperlab::test
