#include "paperlab/cca/attention.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros.h>
#include <c10/util/Exception.h>

#include <cmath>
#include <limits>
#include <vector>

#include "paperlab/cca/inputs_internal.h"
#include "paperlab/cca/partition.h"
#include "paperlab/ops/dispatch_rules_internal.h"
#include "paperlab/ops/linear.h"
#include "paperlab/ops/tensor_checks_internal.h"

namespace paperlab::cca {
namespace {

using Entries = ops::GroupPoolResult;

// Core tokens of the groups of the first `length` tokens; [B, P, m, D].
Entries pooled(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
               const c10::SymInt& length, const Options& options) {
  ops::GroupPoolOptions pool_options;
  pool_options.group = options.group_size;
  pool_options.first = options.keep_first;
  pool_options.kind = kind_of(options.pooling);
  pool_options.per_kv_head = options.weights_per == WeightsPer::kKvHead;
  return ops::group_pool(query.narrow_symint(2, 0, length), key.narrow_symint(2, 0, length),
                         value.narrow_symint(2, 0, length), pool_options);
}

// The kept tokens as entries before the core tokens, in as many heads as these have.
at::Tensor with_kept(const at::Tensor& core, const at::Tensor& x, std::int64_t keep_first) {
  if (keep_first == 0) {
    return core;
  }
  return at::cat({repeated_heads(x.narrow(2, 0, keep_first), core.sym_size(1)), core}, 2);
}

// [1, 1, T, n] true where a row does not see an entry.
at::Tensor hidden_entries(const at::Tensor& seen, std::int64_t first, std::int64_t count) {
  return seen.narrow(1, first, count).logical_not().view({1, 1, seen.size(0), count});
}

double scale_of(const at::Tensor& query) {
  return 1.0 / std::sqrt(static_cast<double>(query.sym_size(3).guard_int(__FILE__, __LINE__)));
}

// Scaled products of each query head with its entries [B, G or H, n, D], [B, H, T, n]: one product
// for each head of entries, because that one has the same bits for any number of threads.
at::Tensor logits_of(const at::Tensor& query, const at::Tensor& entries) {
  const std::int64_t batch = entries.sym_size(0).guard_int(__FILE__, __LINE__);
  const std::int64_t heads = entries.sym_size(1).guard_int(__FILE__, __LINE__);
  if (batch * heads == 0) {
    return query.sum(3, true).expand_symint(
        {query.sym_size(0), query.sym_size(1), query.sym_size(2), entries.sym_size(2)});
  }
  const std::int64_t group = query.sym_size(1).guard_int(__FILE__, __LINE__) / heads;
  std::vector<at::Tensor> products;
  for (std::int64_t unit = 0; unit < batch * heads; ++unit) {
    const std::int64_t row = unit / heads;
    const std::int64_t head = unit % heads;
    products.push_back(ops::linear(query.select(0, row).narrow(0, head * group, group),
                                   entries.select(0, row).select(0, head)));
  }
  return at::stack(products).unflatten(0, {batch, heads}).flatten(1, 2).mul(scale_of(query));
}

// Over the last dimension, which must not be empty. The sums of at::softmax's gradient depend on
// the number of threads.
at::Tensor softmax_of(const at::Tensor& logits) {
  const at::Tensor powers = logits.sub(logits.detach().amax(-1, true)).exp();
  return powers.div(powers.sum(-1, true));
}

// w [B, H, m, g]: of the tokens of the first m groups.
at::Tensor pool_weights(const at::Tensor& query, const at::Tensor& key, std::int64_t count,
                        std::int64_t group) {
  const std::int64_t tokens = count * group;
  const at::Tensor evaluator = query.slice(2, group - 1, tokens, group).unsqueeze(3);
  const at::Tensor keys =
      repeated_heads(key.narrow(2, 0, tokens), query.sym_size(1)).unflatten(2, {count, group});
  return softmax_of(keys.mul(evaluator).sum(-1).mul(scale_of(query)));
}

// What the core tokens' weights p [B, H, T, m] give the tokens, [B, H, T, T].
at::Tensor shared_out(const at::Tensor& p, const at::Tensor& weights) {
  const at::Tensor of_tokens = p.unsqueeze(4).mul(weights.unsqueeze(2)).flatten(3);
  const std::int64_t length = p.size(2);
  const at::Tensor rest =
      at::zeros({p.size(0), p.size(1), length, length - of_tokens.size(3)}, p.options());
  return at::cat({of_tokens, rest}, 3);
}

}  // namespace

ops::AttentionResult attention(const at::Tensor& query, const at::Tensor& key,
                               const at::Tensor& value, const Options& options) {
  check_options("attention", options);
  check_inputs("attention", query, key, value);
  const c10::SymInt behind = query.sym_size(2) - options.keep_first - options.window;
  if (behind < options.group_size) {  // nobody sees a core token
    return ops::attention(query, key, value);
  }
  const c10::SymInt tokens = options.keep_first + behind / options.group_size * options.group_size;
  const Entries core = pooled(query, key, value, tokens, options);
  ops::AttentionOptions attended;
  attended.window = options.window;
  attended.prefix_key = with_kept(core.key, key, options.keep_first);
  attended.prefix_value = with_kept(core.value, value, options.keep_first);
  attended.prefix_group = options.group_size;
  attended.prefix_kept = options.keep_first;
  attended.prefix_overlap = options.boundary == Boundary::kPaperEquation;
  attended.prefix_truncated = options.boundary == Boundary::kTritonTruncation;
  return ops::attention(query, key, value, attended);
}

ops::GroupPoolResult pool(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                          const Options& options) {
  Options used = options;  // the others do not count, so they may be anything
  used.window = 0;
  used.boundary = Boundary::kExact;
  check_options("pool", used);
  check_inputs("pool", query, key, value);
  const Entries core = pooled(query, key, value, query.sym_size(2), options);
  const bool is_shared = options.weights_per == WeightsPer::kKvHead;
  const c10::SymInt heads = is_shared ? key.sym_size(1) : query.sym_size(1);
  return {repeated_heads(core.key, heads).contiguous(),  // one key head's are expanded
          repeated_heads(core.value, heads).contiguous()};
}

at::Tensor mask(std::int64_t length, const Options& options) {
  check_options("mask", options);
  check_count("mask", "length", length, 0);
  const std::int64_t core = num_visible(length, options);
  TORCH_CHECK_VALUE(static_cast<double>(length) * static_cast<double>(core + length) < 0x1p46,
                    "mask: length must give less than 2^46 elements, got ", length);
  check_memory("mask", "length", {length, core + length}, at::kBool);
  const at::Tensor query = at::arange(1, length + 1, at::kLong).unsqueeze(1);  // i
  const at::Tensor token = at::arange(1, length + 1, at::kLong).unsqueeze(0);
  const at::Tensor behind = query.sub(options.keep_first + options.window);
  const at::Tensor j = behind.clamp_min(0).floor_divide(options.group_size);
  at::Tensor sees_core = at::arange(core, at::kLong).unsqueeze(0).lt(j);
  if (options.boundary == Boundary::kTritonTruncation && core > 0) {  // x / g is 0 for -g < x < g
    sees_core = sees_core.logical_or(
        at::arange(core, at::kLong).eq(0).logical_and(behind.gt(0).logical_and(j.eq(0))));
  }
  const std::int64_t overlap = options.boundary == Boundary::kPaperEquation ? 1 : 0;
  const at::Tensor last_hidden =
      j.mul(options.group_size).add(options.keep_first - overlap).mul(j.gt(0));
  const at::Tensor sees_raw =
      token.gt(last_hidden).logical_or(token.le(options.keep_first)).logical_and(token.le(query));
  return at::cat({sees_core, sees_raw}, 1);
}

at::Tensor effective_attention(const at::Tensor& query, const at::Tensor& key,
                               std::int64_t group_size, std::int64_t window) {
  Options options;
  options.group_size = group_size;
  options.window = window;
  check_options("effective_attention", options);
  check_query_and_key("effective_attention", query, key);
  const ops::autocast::Off no_autocast;
  const at::ScalarType dtype = query.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const std::int64_t length = query.sym_size(2).guard_int(__FILE__, __LINE__);
  if (ops::checks::has_memory(query)) {
    check_memory("effective_attention", "T", {query.size(0), query.size(1), length, length},
                 query.options().dtype(dtype));
  }
  const at::Tensor q = query.to(dtype);
  const at::Tensor k = key.to(dtype);
  const at::Tensor seen = mask(length, options).to(query.device());
  const std::int64_t count = num_visible(length, options);
  constexpr double kNever = -std::numeric_limits<double>::infinity();
  at::Tensor logits = logits_of(q, k).masked_fill(hidden_entries(seen, count, length), kNever);
  if (count == 0) {
    return (length == 0 ? logits : softmax_of(logits)).to(query.scalar_type());
  }
  const Entries core = pooled(q, k, k, count * group_size, options);
  logits = at::cat(
      {logits_of(q, core.key).masked_fill(hidden_entries(seen, 0, count), kNever), logits}, 3);
  const at::Tensor p = softmax_of(logits);
  const at::Tensor by_core =
      shared_out(p.narrow(3, 0, count), pool_weights(q, k, count, group_size));
  return p.narrow(3, count, length).add(by_core).to(query.scalar_type());
}

}  // namespace paperlab::cca
