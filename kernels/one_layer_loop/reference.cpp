#include "kernels/common/one_layer_reference.h"
#include "kernels/one_layer_loop/one_layer_loop.h"

namespace paperlab::kernels {

OneLayerEvaluation one_layer_loop_reference(std::span<const PackedStrings> groups,
                                            const OneLayerParameters& parameters,
                                            const OneLayerGradient& gradient) {
  clear_gradient(parameters, gradient);
  OneLayerEvaluation evaluation = no_strings();
  for (const PackedStrings& group : groups) {
    const auto positions = static_cast<std::size_t>(group.length - 1);
    std::vector<std::uint8_t> tokens(positions + 1, static_cast<std::uint8_t>(group.query));
    for (std::size_t n = 0; n < static_cast<std::size_t>(group.num_strings); ++n) {
      const std::size_t block = n / kStringsPerBlock;
      const auto bit = static_cast<unsigned>(n % kStringsPerBlock);
      for (std::size_t l = 0; l < positions; ++l) {
        tokens[l] = (group.tokens[block * positions + l] >> bit) & 1U;
      }
      const int y = ((group.negative[block] >> bit) & 1U) != 0 ? -1 : 1;
      add_string(parameters, tokens, y, group.weight, gradient, evaluation);
    }
  }
  return evaluation;
}

}  // namespace paperlab::kernels
