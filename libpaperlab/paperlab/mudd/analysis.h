#pragma once
/// \file
/// What goes on inside a trained model: how alike the inputs of neighbouring blocks are, which
/// attention heads look beyond sinks, and how much each connection carries.
/// Source: arXiv:2502.12170, Sec. 4 (Figs. 6 and 8) and Appendix G (Figs. 12 and 13).

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

#include "paperlab/core/export.h"
#include "paperlab/mudd/config.h"
#include "paperlab/nn/decoder.h"

namespace paperlab::mudd {

/// All functions read rows of tokens [N, T] int64, some rows at a time, without gradients.
/// Their attention is full attention, whatever stands in its place in the model.
/// \throws ValueError  "FUNCTION: ..." if the tokens are not as above, num_initial is below 0, or
///                     (where connections are observed) the variant is neither the base nor one
///                     with dense connections; errors of nn::Decoder too.

/// Cosines by stream and pair of blocks.
struct InputCosines {
  std::string ways;                          ///< "QKVR", or "R" where all streams are one
  std::vector<std::vector<double>> cosines;  ///< [ways][L - 1]; entry m: blocks m and m + 1
};

/// Returns cos(input of block l, input of block l - 1) of each stream before its norm, the mean
/// over all tokens; l = 1..L-1.
PAPERLAB_API InputCosines adjacent_input_cosine(const MuddConfig& config, const nn::Decoder& model,
                                                const at::Tensor& tokens);

/// Which keys are attention sinks.
struct Sinks {
  std::int64_t num_initial = 2;      ///< The first so many tokens of each row,
  std::vector<std::int64_t> tokens;  ///< and these tokens wherever they are.
};

/// Returns the share of heads and queries, by layer, whose largest attention weight is not on a
/// sink; of equal weights the first counts.
PAPERLAB_API std::vector<double> head_activation_ratio(const MuddConfig& config,
                                                       const nn::Decoder& model,
                                                       const at::Tensor& tokens,
                                                       const Sinks& sinks);

/// The connections after one block; C ways and J sources.
struct ConnectionStats {
  std::int64_t layer = 0;
  std::string ways;                   ///< "R" where all streams are one
  std::vector<std::int64_t> sources;  ///< numbers j of the states X_j
  at::Tensor mean;                    ///< [C, J] float64: mean over tokens of A_cj, times m_j
  at::Tensor std;                     ///< [C, J] float64: their standard deviation, times m_j
};

/// Returns rectified connection weights where there is an aggregate; m_j is the mean norm of X_j.
PAPERLAB_API std::vector<ConnectionStats> rectified_connection_weights(const MuddConfig& config,
                                                                       const nn::Decoder& model,
                                                                       const at::Tensor& tokens);

}  // namespace paperlab::mudd
