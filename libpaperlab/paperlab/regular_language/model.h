#pragma once
/// \file
/// A trained one-layer transformer: scores, attention, features, chains of thought.
/// Source: Huang, Liang, Yang, ICML 2025. Index and units as in train.h.

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "paperlab/core/export.h"
#include "paperlab/regular_language/train.h"

namespace paperlab::regular_language {

struct Model {
  int max_length = 0;
  double attention_scale = 2.0;
  std::vector<double> u;  ///< [2 max_length]
  std::vector<double> w;  ///< row-major [2 max_length keys, 2 max_length queries]
};

struct LabelledString {
  std::vector<std::uint8_t> tokens;  ///< 0 (a) or 1 (b)
  int label = 1;                     ///< +1 or -1
  double weight = 0.0;               ///< in the loss
};

/// The strings that train() learns from, by length. \throws ValueError as train, and above
/// max_length 20.
PAPERLAB_API std::vector<LabelledString> training_strings(const TrainOptions& options);

/// Attention weights [L] of the last token over the string.
/// \throws ValueError  if a token is not 0 or 1 or the string is empty or longer than max_length.
PAPERLAB_API std::vector<double> attention(const Model& model,
                                           std::span<const std::uint8_t> tokens);

/// T(X) = sum_l phi_l u[(l, x_l)]; the predicted label is +1 iff T > 0. Throws as attention().
PAPERLAB_API double score(const Model& model, std::span<const std::uint8_t> tokens);

/// Row-major [N, 2 max_length] vectors z_n = sum_l phi_l E[(l, x_l)], so that T = <u, z>.
PAPERLAB_API std::vector<double> features(const Model& model,
                                          const std::vector<LabelledString>& strings);

/// The last token that each chain of thought appends: 1 says that the number of b is odd.
///
/// Each of the L0 - 1 steps appends a (0) if T > 0, else b (1); `truncated` drops the first token
/// before the next step, so that every step sees L0 tokens.
/// \param strings  row-major [N, base_length] of 0 and 1.
/// \throws ValueError  if base_length < 2, a token is not 0 or 1, the chain does not fit max_length
///                     (base_length tokens if truncated, else 2 base_length - 2), u or w have other
///                     sizes than the model's or are not finite.
/// The same bits for any number of threads.
PAPERLAB_API std::vector<int> chain_of_thought(const Model& model,
                                               std::span<const std::uint8_t> strings,
                                               int base_length, bool truncated);

}  // namespace paperlab::regular_language
