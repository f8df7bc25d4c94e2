#include "paperlab/cca/baselines.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/pow.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "paperlab/cca/inputs_internal.h"
#include "paperlab/ops/rope.h"

namespace paperlab::cca::baselines {
namespace {

void check_rotary(const char* function, const at::Tensor& query, double rope_base) {
  TORCH_CHECK_VALUE(query.sym_size(3) % 2 == 0, function,
                    ": q must have an even D to be rotated, got ", query.sym_sizes());
  TORCH_CHECK_VALUE(std::isfinite(rope_base) && rope_base > 0.0, function,
                    ": rope_base must be finite and > 0, got ", rope_base);
}

// x [B, N, T, D] at positions [T] float64, in ATen's operators so that compilers see through it.
at::Tensor rotated(const at::Tensor& x, const at::Tensor& positions, double rope_base) {
  const c10::SymInt width = x.sym_size(3);
  const at::Tensor channels =
      at::arange(0, (width / 2).guard_int(__FILE__, __LINE__), positions.options());
  const double size = static_cast<double>(width.guard_int(__FILE__, __LINE__));
  const at::Tensor angles =
      positions.unsqueeze(1).mul(at::pow(rope_base, channels.mul(-2.0 / size))).unsqueeze(0);
  const auto dtype = x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  return ops::rope(x.transpose(1, 2), angles.cos().to(dtype), angles.sin().to(dtype))
      .transpose(1, 2);
}

// 0..T-1
at::Tensor positions_of(const at::Tensor& x) {
  return at::arange(x.sym_size(2).guard_int(__FILE__, __LINE__), x.options().dtype(at::kDouble));
}

// The last `window` keys, and before them the first min(count, T) as other queries and keys see
// them; a query that is not defined is the one of the window.
struct Sinks {
  std::int64_t count = 0;
  at::Tensor query{};
  at::Tensor key{};
};

ops::AttentionResult with_sinks(const at::Tensor& query, const at::Tensor& key,
                                const at::Tensor& value, std::int64_t window, const Sinks& sinks) {
  ops::AttentionOptions options;
  options.window = window;
  const c10::SymInt length = key.sym_size(2);
  const c10::SymInt count = length < sinks.count ? length : c10::SymInt(sinks.count);
  if (count > 0) {
    options.prefix_query = sinks.query;
    options.prefix_key = sinks.key.narrow_symint(2, 0, count);
    options.prefix_value = value.narrow_symint(2, 0, count);
  }
  return ops::attention(query, key, value, options);
}

}  // namespace

ops::AttentionResult full(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value) {
  check_inputs("full", query, key, value);
  return ops::attention(query, key, value);
}

ops::AttentionResult sliding_window(const at::Tensor& query, const at::Tensor& key,
                                    const at::Tensor& value, std::int64_t window) {
  check_inputs("sliding_window", query, key, value);
  check_count("sliding_window", "window", window, 1);
  return with_sinks(query, key, value, window, {});
}

ops::AttentionResult streaming_llm(const at::Tensor& query, const at::Tensor& key,
                                   const at::Tensor& value, const StreamingLlmOptions& options) {
  check_inputs("streaming_llm", query, key, value);
  check_count("streaming_llm", "sinks", options.sinks, 0);
  check_count("streaming_llm", "recent", options.recent, 0);
  check_rotary("streaming_llm", query, options.rope_base);
  const at::Tensor position = positions_of(query);
  const at::Tensor q = rotated(query, position, options.rope_base);
  const at::Tensor k = rotated(key, position, options.rope_base);
  const auto in_cache = static_cast<double>(options.sinks + options.recent);
  const at::Tensor from_cache = rotated(query, position.clamp_max(in_cache), options.rope_base);
  return with_sinks(q, k, value, options.recent + 1, {options.sinks, from_cache, k});
}

ops::AttentionResult lm_infinite(const at::Tensor& query, const at::Tensor& key,
                                 const at::Tensor& value, const LmInfiniteOptions& options) {
  check_inputs("lm_infinite", query, key, value);
  check_count("lm_infinite", "global_tokens", options.global_tokens, 0);
  check_count("lm_infinite", "local", options.local, 1);
  check_count("lm_infinite", "limit", options.limit, 0);
  check_rotary("lm_infinite", query, options.rope_base);
  const at::Tensor position = positions_of(query);
  const at::Tensor q = rotated(query, position, options.rope_base);
  const at::Tensor k = rotated(key, position, options.rope_base);
  const std::int64_t last = query.sym_size(2).guard_int(__FILE__, __LINE__) - 1;
  const auto distance = static_cast<double>(std::min(options.limit, last));
  const at::Tensor far_query = rotated(query, position.mul(0.0).add(distance), options.rope_base);
  return with_sinks(q, k, value, options.local, {options.global_tokens, far_query, key});
}

ops::AttentionResult a_shape(const at::Tensor& query, const at::Tensor& key,
                             const at::Tensor& value, std::int64_t initial, std::int64_t local) {
  check_inputs("a_shape", query, key, value);
  check_count("a_shape", "initial", initial, 0);
  check_count("a_shape", "local", local, 1);
  return with_sinks(query, key, value, local, {initial, {}, key});
}

}  // namespace paperlab::cca::baselines
