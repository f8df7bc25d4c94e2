#pragma once
/// \file
/// How well a model predicts a text: the negative log-likelihood of each token, read in windows.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>

#include "paperlab/core/export.h"
#include "paperlab/nn/decoder.h"

namespace paperlab::eval {

/// Window w reads tokens[w stride : w stride + context] and predicts the token after each; the
/// first window that reaches a token scores it.
struct WindowOptions {
  std::int64_t context = 0;  ///< >= 1
  std::int64_t stride = 0;   ///< 1..context
  /// Gets the tokens scored so far; false ends the work (what is missing is NaN).
  std::function<bool(std::int64_t num_scored)> on_window{};
};

/// A model in two steps, so that logits of a few tokens at a time exist.
struct ScoredModel {
  std::function<at::Tensor(const at::Tensor& tokens)> state;  ///< [1, T] int64 -> [1, T, E]
  std::function<at::Tensor(const at::Tensor& state)> logits;  ///< [n, E] -> [n, V]
};

/// Returns -ln p of tokens 1..N-1, [N - 1] float64 on the CPU. Windows are read one by one, so no
/// value depends on how many would fit into a batch.
///
/// \param tokens  [N] int64, N >= 2.
/// \throws c10::ValueError, c10::TypeError  if tokens or options are not as above; as the model.
PAPERLAB_API at::Tensor token_nll(const ScoredModel& model, const at::Tensor& tokens,
                                  const WindowOptions& options);

/// Of a decoder.
PAPERLAB_API at::Tensor token_nll(nn::Decoder& decoder, const at::Tensor& tokens,
                                  const WindowOptions& options);

/// Returns how many tokens the window that scores token 1..N-1 had read before it, [N - 1] int64:
/// the token's position in its window is that number, 1..context.
PAPERLAB_API at::Tensor tokens_read(std::int64_t num_tokens, const WindowOptions& options);

}  // namespace paperlab::eval
