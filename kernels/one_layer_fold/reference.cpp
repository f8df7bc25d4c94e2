#include "kernels/common/one_layer_reference.h"
#include "kernels/one_layer_fold/one_layer_fold.h"

namespace paperlab::kernels {

OneLayerEvaluation one_layer_fold_reference(std::span<const AffineGroup> groups,
                                            const OneLayerParameters& parameters,
                                            const OneLayerGradient& gradient) {
  clear_gradient(parameters, gradient);
  OneLayerEvaluation evaluation = no_strings();
  for (const AffineGroup& group : groups) {
    std::uint8_t tokens[kMaxStringLength];
    for (std::uint32_t i = 0; i < (1U << static_cast<unsigned>(group.num_bits)); ++i) {
      for (int l = 0; l < group.length; ++l) {
        tokens[l] = static_cast<std::uint8_t>(affine_token(group, l, i));
      }
      add_string(parameters, {tokens, static_cast<std::size_t>(group.length)},
                 affine_label(group, i), group.weight, gradient, evaluation);
    }
  }
  return evaluation;
}

}  // namespace paperlab::kernels
