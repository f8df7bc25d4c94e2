#pragma once
/// \file
/// Keys and values of groups of tokens pooled to one core token each, as a differentiable operator.
/// Source: CCA (Chen et al., ICML 2025, arXiv:2412.12465), globality-aware pooling.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string_view>

#include "paperlab/core/export.h"

namespace paperlab::ops {

struct GroupPoolOptions {
  std::int64_t group = 16;  ///< g >= 1.
  std::int64_t first = 0;   ///< The token with which group 0 begins, >= 0.
  /// [B] int64, 0..S: what `first` counts from in each row (left padding). Absent: 0.
  at::Tensor start = {};
  /// "attention", "mean" or "max" (of each channel; the first of equal maxima has the gradient).
  std::string_view kind = "attention";
  /// One core token of each kv head: its evaluator is the mean of the H/G queries at the group's
  /// last token. "mean" and "max" need no query and always have one of each kv head.
  bool per_kv_head = false;
  std::optional<double> scale = std::nullopt;  ///< Of the logits, finite. Absent: 1/sqrt(D).
};

struct GroupPoolResult {
  at::Tensor key;    ///< [B, P, m, D], dtype of key, contiguous; m = max(0, S - first) / g.
  at::Tensor value;  ///< Likewise; P is G per kv head, else H.
};

/// For group c, tokens t = f .. f + g - 1 with f = start + first + c g, and q the query of the last
/// of them: w = softmax over t of (scale q . k_t), key = sum w_t k_t, value = sum w_t v_t.
///
/// \param query  [B, H, T, D], float32, float64 or bfloat16 (CUDA: float16 too), any strides: of
///               the last T <= S tokens, among them the last of every group. "mean" and "max":
///               absent or not read. D is 1..256.
/// \param key    [B, G, S, D], H % G == 0, dtype and device of query, any strides.
/// \param value  [B, G, S, D], likewise.
/// \return       new tensors; zeros for groups that a row with a later start does not complete.
///               Differentiable once with respect to query, key and value.
/// \throws c10::ValueError  (Python: ValueError) if a shape, device or value is not as above.
/// Starts
///                          on a CUDA device are not looked at: rows whose start is refused on the
///                          CPU are NaN there, and their gradients.
/// \throws c10::TypeError   (Python: TypeError) if a dtype is not as above.
///
/// Registered as `paperlab::group_pool`, its gradient as `paperlab::group_pool_backward`; under
/// autocast in autocast's dtype. Accumulates in float32 (float64 for float64). On the CPU the same
/// bits from run to run and for any number of threads; a group's do not depend on the other groups.
PAPERLAB_API GroupPoolResult group_pool(const at::Tensor& query, const at::Tensor& key,
                                        const at::Tensor& value,
                                        const GroupPoolOptions& options = {});

/// The same into memory that is there, for caches: core_key and core_value are [B, P, m, D] views
/// with any strides but 1 in the last dimension, m at most as above, which get the first m groups.
/// They overlap neither each other nor the inputs. No gradients. Throws as above, before
/// anything is written.
PAPERLAB_API void group_pool_into(const at::Tensor& query, const at::Tensor& key,
                                  const at::Tensor& value, const GroupPoolOptions& options,
                                  const at::Tensor& core_key, const at::Tensor& core_value);

}  // namespace paperlab::ops
