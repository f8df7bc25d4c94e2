#include "paperlab/cca/rows.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/full.h>
#include <ATen/ops/gather.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cstdint>

#include "paperlab/cca/inputs_internal.h"
#include "paperlab/cca/partition.h"
#include "paperlab/ops/attention.h"
#include "paperlab/ops/group_pool.h"
#include "paperlab/ops/kernel_dtype_internal.h"
#include "paperlab/ops/tensor_checks_internal.h"

namespace paperlab::cca {
namespace {

constexpr char kFunction[] = "paperlab cca attention";  // as its users know it

// What the operators do not see: they get parts of these.
void check_arguments(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                     const Options& options) {
  validate(kFunction, options);
  for (const at::Tensor* x : {&query, &key, &value}) {
    TORCH_CHECK_VALUE(x->defined() && x->dim() == 4, kFunction,
                      ": query, key and value must be [B, heads, length, D]");
  }
  if (!is_autocast_on(query)) {
    ops::check_kernel_dtype(kFunction, "query", query);
    for (const at::Tensor* x : {&key, &value}) {
      TORCH_CHECK_TYPE(x->scalar_type() == query.scalar_type(), kFunction,
                       ": key and value must be of the dtype of query (", query.scalar_type(),
                       "), got ", x->scalar_type());
    }
  }
  TORCH_CHECK_VALUE(key.sizes() == value.sizes(), kFunction, ": value must be of the shape of key ",
                    key.sizes(), ", got ", value.sizes());
  TORCH_CHECK_VALUE(query.size(2) <= key.size(2), kFunction, ": query must be the last of ",
                    key.size(2), " tokens, got ", query.size(2));
}

// Each group that a query sees must end at a query that is there. Waits for the device.
void check_evaluators(const at::Tensor& query, std::int64_t num_keys, const Options& options,
                      const Rows& rows) {
  const std::int64_t num_queries = query.size(2);
  const auto number = [&query](std::int64_t n) {
    return at::full({1}, n, query.options().dtype(at::kLong));
  };
  const at::Tensor start = rows.key_start.defined() ? rows.key_start : number(0);
  const at::Tensor end = rows.key_end.defined() ? rows.key_end : number(num_keys);
  const at::Tensor behind = end.sub(start).sub(options.keep_first + options.window);
  const at::Tensor first = start.add(options.keep_first + options.group_size - 1);
  const at::Tensor is_missing =
      behind.ge(options.group_size).logical_and(first.lt(num_keys - num_queries));
  TORCH_CHECK_VALUE(!is_missing.any().item<bool>(), kFunction,
                    ": query must begin with the last token of the first group or before, got the "
                    "last ",
                    num_queries, " of ", num_keys,
                    " tokens: a key-value cache does not hold the past queries that pooling by "
                    "attention needs (generate with use_cache=False, or with paperlab.nn)");
}

// Queries of the first `length` tokens; zeros where they are missing and not needed.
at::Tensor evaluators(const at::Tensor& query, std::int64_t num_keys, std::int64_t length) {
  const std::int64_t missing = num_keys - query.size(2);
  if (missing == 0) {
    return query.narrow(2, 0, length);
  }
  const at::Tensor there = query.narrow(2, 0, std::max<std::int64_t>(length - missing, 0));
  return at::constant_pad_nd(there, {0, 0, length - there.size(2), 0}, 0.0);
}

// The first n tokens [B, P, n, D] of each row, copies of x [B, G, S, D].
at::Tensor kept(const at::Tensor& x, std::int64_t num_heads, std::int64_t n, const Rows& rows) {
  at::Tensor first = x.narrow(2, 0, n);
  if (rows.key_start.defined()) {
    const at::Tensor at = at::arange(n, rows.key_start.options())
                              .add(rows.key_start.unsqueeze(1))
                              .clamp_max(x.size(2) - 1);
    first = at::gather(
        x, 2, at.view({-1, 1, n, 1}).expand({x.size(0), x.size(1), n, x.size(3)}).to(x.device()));
  }
  return repeated_heads(first, num_heads);
}

// Core tokens and, before them, the kept ones.
void add_prefix(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                const Options& options, const Rows& rows, ops::AttentionOptions& attention) {
  const std::int64_t length = key.size(2) - options.window;  // what no window covers
  ops::GroupPoolOptions pool;
  pool.group = options.group_size;
  pool.first = options.keep_first;
  pool.kind = kind_of(options.pooling);
  pool.per_kv_head = options.weights_per == WeightsPer::kKvHead;
  pool.scale = rows.scale;
  if (rows.key_start.defined()) {
    pool.start = rows.key_start.clamp_max(length);
  }
  const bool has_evaluators = options.pooling == Pooling::kAttention && options.group_size > 1;
  if (has_evaluators && query.size(2) < key.size(2) && ops::checks::has_memory(query)) {
    check_evaluators(query, key.size(2), options, rows);
  }
  const ops::GroupPoolResult core =
      ops::group_pool(evaluators(query, key.size(2), length), key.narrow(2, 0, length),
                      value.narrow(2, 0, length), pool);
  attention.window = options.window;
  attention.prefix_group = options.group_size;
  attention.prefix_kept = options.keep_first;
  attention.prefix_overlap = options.boundary == Boundary::kPaperEquation;
  attention.prefix_truncated = options.boundary == Boundary::kTritonTruncation;
  attention.prefix_key = core.key;
  attention.prefix_value = core.value;
  if (options.keep_first > 0) {
    const std::int64_t heads = core.key.size(1);
    attention.prefix_key = at::cat({kept(key, heads, options.keep_first, rows), core.key}, 2);
    attention.prefix_value = at::cat({kept(value, heads, options.keep_first, rows), core.value}, 2);
  }
}

}  // namespace

at::Tensor attention_of_rows(const at::Tensor& query, const at::Tensor& key,
                             const at::Tensor& value, const Options& options, const Rows& rows) {
  check_arguments(query, key, value, options);
  ops::AttentionOptions attention;
  attention.scale = rows.scale;
  attention.key_start = rows.key_start;
  attention.key_end = rows.key_end;
  if (num_visible(key.size(2), options) > 0) {  // of the longest row that may be
    add_prefix(query, key, value, options, rows, attention);
  }
  return ops::attention(query, key, value, attention).out;
}

}  // namespace paperlab::cca
