#pragma once
/// \file
/// Attention with the row log-sum-exp, as a differentiable operator: dense, sliding-window,
/// core-context and sink attention in one softmax over two key streams.
/// Source: FlashAttention-2 (Dao, arXiv:2307.08691); core-context: CCA (Chen et al., ICML 2025,
/// arXiv:2412.12465).

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>

#include "paperlab/core/export.h"

namespace paperlab::ops {

/// What a query sees and how logits are scaled. A tensor that is not defined is absent.
struct AttentionOptions {
  /// Query t stands at key position t + S - T and sees no later key.
  bool causal = true;
  /// The last `window` keys, the query's own included; >= 1, needs causal.
  std::optional<std::int64_t> window = std::nullopt;
  /// Multiplies the logits; finite. Absent: 1/sqrt(D).
  std::optional<double> scale = std::nullopt;
  /// Keys before key 0 that are no longer there, >= 0; not 0 needs causal. Key n stands at position
  /// n + num_past, window, prefix and key ranges count from position 0, and what a query would see
  /// of keys that are gone, it does not see.
  std::int64_t num_past = 0;
  /// [B] int64, 0..num_past + S: keys at positions key_start <= j < key_end take part, others are
  /// never read and may hold NaN. Values on a CUDA device are not looked at: one outside counts as
  /// the nearest inside, which are the same keys. Absent: all.
  at::Tensor key_start = {};
  at::Tensor key_end = {};
  /// [B, H, T, D]: the queries for the prefix. Absent: query.
  at::Tensor prefix_query = {};
  /// [B, P, J, D], P = H or G: entries in the same softmax; both or none; need causal and window.
  at::Tensor prefix_key = {};
  at::Tensor prefix_value = {};
  /// g >= 1, core-context: entry n stands for keys n g .. n g + g - 1, and rows that are `window`
  /// keys (>= 0) or more past the last of them see it instead of them; with
  /// L = num_past + S - window - prefix_kept, J >= prefix_kept + L / g where L >= g.
  /// 0, sinks: entry n stands for key n and is seen by rows whose window has left that key behind.
  /// With key ranges both count from key_start, and entries with a key at or past key_end drop out.
  std::int64_t prefix_group = 0;
  /// Core-context, >= 0: the first `prefix_kept` keys stay as they are for ever. The first entries
  /// of the prefix are copies of them, and entry prefix_kept + c stands for the g keys from
  /// prefix_kept + c g on. A row that sees no core entry sees the keys, not their copies.
  std::int64_t prefix_kept = 0;
  /// Core-context: a row that sees entries also sees the last key that they stand for.
  bool prefix_overlap = false;
  /// Core-context: rows with more than window, but fewer than window + g keys (those that are kept
  /// not counted) also see the first core entry, if num_past + S holds window + g such keys.
  bool prefix_truncated = false;
};

struct AttentionResult {
  at::Tensor out;  ///< [B, H, T, D], dtype of query, contiguous; 0 where a row sees no key.
  at::Tensor lse;  ///< [B, H, T] natural logarithm, float32 (float64 for float64); -inf likewise.
};

/// softmax(scale Q K^T + mask) V and the log-sum-exp of the scaled logits.
///
/// \param query  [B, H, T, D], float32, float64 or bfloat16 (CUDA: float16 too), any strides. D is
///               1..256.
/// \param key    [B, G, S, D], H % G == 0, dtype and device of query, any strides.
/// \param value  [B, G, S, D], likewise.
/// \return       new tensors; differentiable once with respect to query, key, value and the prefix.
/// \throws c10::ValueError  (Python: ValueError) if a shape, device or value is not as above (but
///                          values on a CUDA device).
/// \throws c10::TypeError   (Python: TypeError) if a dtype is not as above.
///
/// Registered as `paperlab::attention`, its gradient as `paperlab::attention_backward`, the same
/// for T = 1 alone as `paperlab::attention_decode`; under autocast in autocast's dtype. Accumulates
/// in float32 (float64 for float64). O(B H T S D) time, memory linear in T and S. The same bits
/// from run to run and for any number of threads; with T = 1 for any B (but on a CUDA device where
/// LibTorch computes). On the CPU NaN and infinity of a key reach only rows that see it; elsewhere
/// and for Backend::kTorch keys must be finite, since a weight of 0 does not hide them.
PAPERLAB_API AttentionResult attention(const at::Tensor& query, const at::Tensor& key,
                                       const at::Tensor& value,
                                       const AttentionOptions& options = {});

}  // namespace paperlab::ops
