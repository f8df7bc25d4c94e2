#pragma once
/// \file
/// What core-context attention is compared with, in the same form: B batch, T tokens, H query
/// heads, G key/value heads, D head size; query r sees token t (both from 0).
///
/// All take query [B, H, T, D] and key, value [B, G, T, D], H % G == 0, of one dtype (float32,
/// float64 or bfloat16; on CUDA devices float16 too), any strides, D in 1..256, and give out
/// [B, H, T, D] and lse [B, H, T], differentiable once with respect to all three. They throw
/// c10::ValueError or c10::TypeError ("<function>: ...") if an argument is not as described, before
/// any work. Registered as `paperlab::cca_<function>`. On the CPU the same bits from run to run and
/// for any number of threads.

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "paperlab/core/export.h"
#include "paperlab/ops/attention.h"

namespace paperlab::cca::baselines {

/// All t <= r.
PAPERLAB_API ops::AttentionResult full(const at::Tensor& query, const at::Tensor& key,
                                       const at::Tensor& value);

/// 0 <= r - t < window; window >= 1.
PAPERLAB_API ops::AttentionResult sliding_window(const at::Tensor& query, const at::Tensor& key,
                                                 const at::Tensor& value, std::int64_t window);

struct StreamingLlmOptions {
  std::int64_t sinks = 4;     ///< >= 0
  std::int64_t recent = 512;  ///< >= 0
  double rope_base = 10000.0;
};

/// t < sinks, or 0 <= r - t <= recent. Positions are those inside a cache of C = sinks + recent
/// tokens: a sink that the window has left lies min(r, C) - t before the query, others r - t.
/// query and key are not rotated yet; D is even.
/// Source: Xiao et al., ICLR 2024, arXiv:2309.17453.
PAPERLAB_API ops::AttentionResult streaming_llm(const at::Tensor& query, const at::Tensor& key,
                                                const at::Tensor& value,
                                                const StreamingLlmOptions& options = {});

struct LmInfiniteOptions {
  std::int64_t global_tokens = 10;  ///< >= 0
  std::int64_t local = 4096;        ///< >= 1
  std::int64_t limit = 4096;        ///< >= 0
  double rope_base = 10000.0;
};

/// 0 <= r - t < local, or t < global_tokens further back, at distance min(limit, T - 1) whatever
/// their own. query and key are not rotated yet; D is even.
/// Source: Han et al., NAACL 2024, arXiv:2308.16137.
PAPERLAB_API ops::AttentionResult lm_infinite(const at::Tensor& query, const at::Tensor& key,
                                              const at::Tensor& value,
                                              const LmInfiniteOptions& options = {});

/// t < initial, or 0 <= r - t < local; initial >= 0, local >= 1.
/// Source: the A-shape of MInference (Jiang et al., NeurIPS 2024, arXiv:2407.02490).
PAPERLAB_API ops::AttentionResult a_shape(const at::Tensor& query, const at::Tensor& key,
                                          const at::Tensor& value, std::int64_t initial,
                                          std::int64_t local);

/// For each head the columns t and diagonals r - t with the largest sums of the softmax of the last
/// 64 queries: max(vertical, 30) columns, the first 30 among them, and max(slash, 100) diagonals,
/// the nearest 100 among them. A column is seen by all rows from it on; a diagonal o by blocks of
/// 64 rows: rows b..b + 63 see tokens b - o..b + 63 - o of it, none after r. The choice has no
/// gradient. vertical and slash are >= 0.
///
/// Scores and the choice are in float32 (float64 for float64). Time and memory follow the tokens
/// that a block of rows sees; the backward pass gathers them again.
/// Source: the vertical-slash form of MInference (Jiang et al., NeurIPS 2024, arXiv:2407.02490).
PAPERLAB_API ops::AttentionResult vertical_slash(const at::Tensor& query, const at::Tensor& key,
                                                 const at::Tensor& value, std::int64_t vertical,
                                                 std::int64_t slash);

}  // namespace paperlab::cca::baselines
