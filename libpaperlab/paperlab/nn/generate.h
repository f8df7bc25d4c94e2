#pragma once
/// \file
/// Text generation: greedy or sampled, token by token through the cache.
/// Source of top-p: Holtzman et al., arXiv:1904.09751.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "paperlab/core/export.h"
#include "paperlab/nn/decoder.h"

namespace paperlab::nn {

struct GenerateOptions {
  std::int64_t max_new_tokens = 0;  ///< >= 0
  /// Divides the logits before sampling; 0: the most likely token (the first among equals).
  double temperature = 0.0;
  /// Samples among the most likely tokens whose probabilities first sum to this; in (0, 1].
  double top_p = 1.0;
  std::uint64_t seed = 0;             ///< of the draws: a function of it, the row and the step.
  std::int64_t prefill_chunk = 0;     ///< The prompt is read in pieces of this; 0: at once.
  std::vector<std::int64_t> eos{};    ///< A row ends after any of these.
  std::optional<std::int64_t> pad{};  ///< Fills ended rows; absent: the first of `eos`.
  /// Gets each step's tokens [B]; false ends the generation.
  std::function<bool(const at::Tensor& tokens)> on_tokens{};
};

/// Returns the prompt and up to max_new_tokens further tokens of each row, [B, T + n] int64; n is
/// less if all rows ended.
///
/// \param tokens          [B, T] int64, T >= 1.
/// \param attention_mask  [B, T], not zero where a prompt's token counts; not defined: all. Each
///                        row needs one.
/// \throws c10::ValueError, c10::TypeError  as Decoder::forward(), before any work; also if an
///                                          option is not as above or the prompt and the new
///                                          tokens are more than config().max_positions.
/// The same bits from run to run; a row's draws do not depend on the other rows.
PAPERLAB_API at::Tensor generate(const Decoder& decoder, const at::Tensor& tokens,
                                 const at::Tensor& attention_mask, const GenerateOptions& options);

/// Returns the token that a draw u in (0, 1) picks by the rule of GenerateOptions.
/// \param logits  [V], any floating-point dtype; finite or -inf.
PAPERLAB_API std::int64_t sample_token(const at::Tensor& logits, double temperature, double top_p,
                                       double u);

}  // namespace paperlab::nn
