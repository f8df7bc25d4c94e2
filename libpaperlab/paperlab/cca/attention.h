#pragma once
/// \file
/// Core-context-aware attention, its pooling, its mask and the weights that tokens finally get.
/// B batch, T tokens, H query heads, G key/value heads (H % G == 0), D head size, m core tokens.
/// Queries and keys are rotated already.
/// Source: CCA (Chen et al., ICML 2025, arXiv:2412.12465).

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "paperlab/cca/options.h"
#include "paperlab/core/export.h"
#include "paperlab/ops/attention.h"
#include "paperlab/ops/group_pool.h"

namespace paperlab::cca {

/// One softmax over the core tokens that a query sees and the raw keys behind them.
///
/// \param query  [B, H, T, D], float32, float64 or bfloat16 (CUDA: float16 too), any strides. D is
///               1..256; T may be 0.
/// \param key    [B, G, T, D], dtype of query, any strides.
/// \param value  [B, G, T, D], likewise.
/// \return       out [B, H, T, D] in that dtype and lse [B, H, T], the natural logarithm, float32
///               (float64 for float64); new, differentiable once with respect to all three, through
///               pooling too.
/// \throws c10::ValueError  (Python: ValueError) if a shape, device or option is not as above.
/// \throws c10::TypeError   (Python: TypeError) if a dtype is not as above.
///
/// Registered as `paperlab::cca_attention`, composed of `group_pool` and `attention`. Memory is
/// linear in T. On the CPU the same bits from run to run and for any number of threads.
PAPERLAB_API ops::AttentionResult attention(const at::Tensor& query, const at::Tensor& key,
                                            const at::Tensor& value, const Options& options = {});

/// The core tokens of all floor(T / g) complete groups; of options only group_size, pooling,
/// weights_per and keep_first count, whose n tokens come before the first group.
///
/// \return  keys and values [B, P, m, D], new, differentiable once; P is G for kKvHead, else H.
/// \throws c10::ValueError, c10::TypeError  as attention().
///
/// Registered as `paperlab::cca_pool`.
PAPERLAB_API ops::GroupPoolResult pool(const at::Tensor& query, const at::Tensor& key,
                                       const at::Tensor& value, const Options& options = {});

/// What row i - 1 sees: core tokens first, then all raw tokens, kept ones included; bool
/// [L, m + L] with m = max(0, floor((L - n - s) / g)).
/// \throws c10::ValueError  "mask: ..." if L is below 0 or an option is not as it must be.
PAPERLAB_API at::Tensor mask(std::int64_t length, const Options& options = {});

/// alpha [B, H, T, T] in query's dtype: the weight that query i finally gives token t, directly or
/// through t's core token (pooling by attention, exact partition). Rows sum to 1, every t <= i has
/// a weight above 0, no later one has any, and alpha V is what attention() gives.
///
/// \param query, key  as for attention().
/// \throws c10::ValueError, c10::TypeError  likewise.
///
/// Registered as `paperlab::cca_effective_attention`; for plots and tests: memory is O(T^2).
/// Differentiable.
PAPERLAB_API at::Tensor effective_attention(const at::Tensor& query, const at::Tensor& key,
                                            std::int64_t group_size = 16,
                                            std::int64_t window = 1024);

}  // namespace paperlab::cca
