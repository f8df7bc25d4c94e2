#include "paperlab/ops/attention_arguments_internal.h"

#include <c10/util/Exception.h>

#include <cmath>

#include "kernels/attention/attention.h"
#include "paperlab/ops/kernel_dtype_internal.h"
#include "paperlab/ops/tensor_checks_internal.h"

namespace paperlab::ops {
namespace {

using checks::check_has_shape;
using checks::check_is_like;
using checks::check_is_plain;
using checks::Shape;

void check_query(const char* function, const at::Tensor& query) {
  check_is_plain(function, "query", query);
  check_kernel_dtype(function, "query", query);
  TORCH_CHECK_VALUE(query.dim() == 4, function, ": query must be [B, H, T, D], got ",
                    query.sym_sizes());
  TORCH_CHECK_VALUE(query.sym_size(3) >= 1 && query.sym_size(3) <= kernels::kMaxHeadDim, function,
                    ": query must be [B, H, T, D] with D in 1..", kernels::kMaxHeadDim, ", got ",
                    query.sym_sizes());
}

void check_keys(const AttentionArguments& in) {
  check_is_like(in.function, "key", in.key, in.query, in.query.scalar_type());
  check_is_like(in.function, "value", in.value, in.query, in.query.scalar_type());
  const c10::SymIntArrayRef query = in.query.sym_sizes();
  const bool is_key =
      in.key.dim() == 4 && in.key.sym_size(0) == query[0] && in.key.sym_size(3) == query[3];
  TORCH_CHECK_VALUE(is_key, in.function, ": key must be [", query[0], ", G, S, ", query[3],
                    "], got ", in.key.sym_sizes());
  const c10::SymInt heads = in.key.sym_size(1);
  const bool divides = heads == 0 ? query[1] == 0 : query[1] % heads == 0;
  TORCH_CHECK_VALUE(divides, in.function, ": key must be [B, G, S, D] with G a divisor of query's ",
                    query[1], " heads, got ", in.key.sym_sizes());
  check_has_shape(in.function, "value", in.value, in.key.sym_sizes().vec());
}

void check_key_bound(const AttentionArguments& in, const char* name, const at::Tensor& bound) {
  if (bound.defined()) {
    check_is_like(in.function, name, bound, in.query, at::kLong);
    check_has_shape(in.function, name, bound, {in.query.sym_size(0)});
  }
}

void check_numbers(const AttentionArguments& in) {
  TORCH_CHECK_VALUE(in.num_past >= 0, in.function, ": num_past must be >= 0, got ", in.num_past);
  TORCH_CHECK_VALUE(in.causal || in.num_past == 0, in.function,
                    ": num_past must be 0 unless causal, got ", in.num_past);
  TORCH_CHECK_VALUE(!in.scale.has_value() || std::isfinite(*in.scale), in.function,
                    ": scale must be finite, got ", *in.scale);
  const std::int64_t least = in.prefix_key.defined() && in.prefix_group > 0 ? 0 : 1;
  if (in.window.has_value()) {
    TORCH_CHECK_VALUE(in.causal, in.function, ": window must be None unless causal, got ",
                      *in.window);
    TORCH_CHECK_VALUE(*in.window >= least, in.function, ": window must be >= ", least, ", got ",
                      *in.window);
  }
}

// What is there for core-context alone.
void check_core_context(const AttentionArguments& in) {
  TORCH_CHECK_VALUE(in.prefix_group >= 0, in.function, ": prefix_group must be >= 0, got ",
                    in.prefix_group);
  TORCH_CHECK_VALUE(in.prefix_kept >= 0, in.function, ": prefix_kept must be >= 0, got ",
                    in.prefix_kept);
  const bool is_core = in.prefix_group > 0;
  TORCH_CHECK_VALUE(is_core || in.prefix_kept == 0, in.function,
                    ": prefix_kept must be 0 without prefix_group, got ", in.prefix_kept);
  TORCH_CHECK_VALUE(is_core || !in.prefix_overlap, in.function,
                    ": prefix_overlap must be False without prefix_group, got True");
  TORCH_CHECK_VALUE(is_core || !in.prefix_truncated, in.function,
                    ": prefix_truncated must be False without prefix_group, got True");
}

void check_prefix_is_whole(const AttentionArguments& in) {
  check_core_context(in);
  if (in.prefix_key.defined()) {
    TORCH_CHECK_VALUE(in.causal, in.function, ": prefix_key must be None unless causal, got ",
                      in.prefix_key.sym_sizes());
    TORCH_CHECK_VALUE(in.window.has_value(), in.function,
                      ": window must be given with prefix_key, got None");
    TORCH_CHECK_VALUE(in.prefix_value.defined(), in.function,
                      ": prefix_value must be given with prefix_key, got None");
    return;
  }
  TORCH_CHECK_VALUE(!in.prefix_value.defined(), in.function,
                    ": prefix_value must be None without prefix_key, got a tensor");
  TORCH_CHECK_VALUE(!in.prefix_query.defined(), in.function,
                    ": prefix_query must be None without prefix_key, got a tensor");
  TORCH_CHECK_VALUE(in.prefix_group == 0, in.function,
                    ": prefix_group must be 0 without prefix_key, got ", in.prefix_group);
}

// The row at the last position sees most entries of a core-context prefix.
void check_prefix_length(const AttentionArguments& in) {
  const c10::SymInt behind =
      in.num_past + in.key.sym_size(2) - in.window.value_or(0) - in.prefix_kept;
  if (in.prefix_group > 0 && behind >= in.prefix_group) {
    const c10::SymInt needed = in.prefix_kept + behind / in.prefix_group;
    TORCH_CHECK_VALUE(in.prefix_key.sym_size(2) >= needed, in.function,
                      ": prefix_key must have at least ", needed, " entries, got ",
                      in.prefix_key.sym_sizes());
  }
}

void check_prefix(const AttentionArguments& in) {
  check_prefix_is_whole(in);
  if (!in.prefix_key.defined()) {
    return;
  }
  check_is_like(in.function, "prefix_key", in.prefix_key, in.query, in.query.scalar_type());
  check_is_like(in.function, "prefix_value", in.prefix_value, in.query, in.query.scalar_type());
  const c10::SymIntArrayRef query = in.query.sym_sizes();
  const c10::SymInt key_heads = in.key.sym_size(1);
  const at::Tensor& prefix = in.prefix_key;
  const bool is_prefix = prefix.dim() == 4 && prefix.sym_size(0) == query[0] &&
                         (prefix.sym_size(1) == query[1] || prefix.sym_size(1) == key_heads) &&
                         prefix.sym_size(3) == query[3];
  TORCH_CHECK_VALUE(is_prefix, in.function, ": prefix_key must be [", query[0], ", P, J, ",
                    query[3], "] with P = ", query[1], " or ", key_heads, ", got ",
                    prefix.sym_sizes());
  check_has_shape(in.function, "prefix_value", in.prefix_value, prefix.sym_sizes().vec());
  if (in.prefix_query.defined()) {
    check_is_like(in.function, "prefix_query", in.prefix_query, in.query, in.query.scalar_type());
    check_has_shape(in.function, "prefix_query", in.prefix_query, query.vec());
  }
  check_prefix_length(in);
}

}  // namespace

at::ScalarType lse_dtype(const at::Tensor& query) { return statistics_dtype(query.scalar_type()); }

void check_arguments(const AttentionArguments& arguments) {
  check_query(arguments.function, arguments.query);
  check_keys(arguments);
  check_key_bound(arguments, "key_start", arguments.key_start);
  check_key_bound(arguments, "key_end", arguments.key_end);
  check_numbers(arguments);
  check_prefix(arguments);
}

void check_decode_arguments(const AttentionArguments& arguments) {
  check_arguments(arguments);
  TORCH_CHECK_VALUE(arguments.query.sym_size(2) == 1, arguments.function,
                    ": query must be [B, H, 1, D], got ", arguments.query.sym_sizes());
}

void check_backward_arguments(const AttentionArguments& arguments,
                              const AttentionBackwardArguments& backward) {
  const char* function = arguments.function;
  const at::Tensor& query = arguments.query;
  const Shape rows = {query.sym_size(0), query.sym_size(1), query.sym_size(2)};
  check_is_like(function, "grad_out", backward.grad_out, query, query.scalar_type());
  check_has_shape(function, "grad_out", backward.grad_out, query.sym_sizes().vec());
  check_is_like(function, "out", backward.out, query, query.scalar_type());
  check_has_shape(function, "out", backward.out, query.sym_sizes().vec());
  check_is_like(function, "lse", backward.lse, query, lse_dtype(query));
  check_has_shape(function, "lse", backward.lse, rows);
  if (backward.grad_lse.defined()) {
    check_is_like(function, "grad_lse", backward.grad_lse, query, lse_dtype(query));
    check_has_shape(function, "grad_lse", backward.grad_lse, rows);
  }
}

}  // namespace paperlab::ops
