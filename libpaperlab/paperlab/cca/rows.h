#pragma once
/// \file
/// Core-context attention of batches whose rows begin and end at different tokens.
/// Source: CCA (Chen et al., ICML 2025, arXiv:2412.12465).

#include <ATen/core/Tensor.h>

#include <optional>

#include "paperlab/cca/options.h"
#include "paperlab/core/export.h"

namespace paperlab::cca {

/// Which keys of each row count, and how logits are scaled. A tensor that is not defined is absent.
struct Rows {
  /// [B] int64, 0..S, device of query: earlier keys are padding; groups count from here. Absent: 0.
  at::Tensor key_start = {};
  /// [B] int64, 0..S, likewise: this key and later ones are padding. Absent: S.
  at::Tensor key_end = {};
  /// Multiplies the logits of attention and pooling; finite. Absent: 1/sqrt(D).
  std::optional<double> scale = std::nullopt;
};

/// attention() of the tokens that count, row by row; what padding holds changes nothing.
///
/// \param query  [B, H, T, D] of the last T of the S tokens, T <= S.
/// \param key    [B, G, S, D], H % G == 0, dtype and device of query.
/// \param value  [B, G, S, D], likewise.
/// \return       [B, H, T, D]; 0 where a row sees no key. Differentiable once.
/// \throws c10::ValueError, c10::TypeError  if an argument is not as above, or if a group that is
///                                          needed ends before the first query: its evaluator is
///                                          not there (only for Pooling::kAttention, g > 1).
PAPERLAB_API at::Tensor attention_of_rows(const at::Tensor& query, const at::Tensor& key,
                                          const at::Tensor& value, const Options& options,
                                          const Rows& rows);

}  // namespace paperlab::cca
