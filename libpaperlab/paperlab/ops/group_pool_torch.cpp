// Groups lie in dimension 3 of [B, G, m, g, D]; R is the number of evaluators of a key head.
// Indices are clamped, so that nothing outside a tensor is read for groups that a row does not
// complete; what they give is masked by choosing, since padding may hold NaN. Gradients are
// gathered, not scattered: their sums have one order.
#include <ATen/ops/arange.h>
#include <ATen/ops/gather.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/max.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "paperlab/ops/dispatch_rules_internal.h"
#include "paperlab/ops/group_pool_internal.h"
#include "paperlab/ops/kernel_dtype_internal.h"

namespace paperlab::ops::pooling {
namespace {

class Pool {
 public:
  Pool(const Arguments& in, std::int64_t heads, std::int64_t groups)
      : in_(in),
        heads_(heads),
        groups_(groups),
        tokens_(in.key.size(2)),
        queries_(has_evaluator(in) ? in.query.size(2) : 0),
        dtype_(statistics_dtype(in.key.scalar_type())) {
    if (in.start.defined()) {
      begin_ = in.start.add(in.first).clamp(0, tokens_).unsqueeze(1);
    }
  }

  Pooled pooled() const;
  Gradients backward(const at::Tensor& grad_key, const at::Tensor& grad_value) const;

 private:
  // Of row b without padding: its groups' first token, and the last group's one after the last.
  std::int64_t span() const { return groups_ * in_.group; }
  std::int64_t key_heads() const { return in_.key.size(1); }
  std::int64_t evaluators() const { return has_evaluator(in_) ? heads_ / key_heads() : 1; }
  std::int64_t first_evaluator() const { return in_.first + in_.group - 1 - (tokens_ - queries_); }

  at::Tensor numbers(std::int64_t count) const {
    return at::arange(count, in_.key.options().dtype(at::kLong));
  }

  at::Tensor gathered(const at::Tensor& x, const at::Tensor& index) const;
  at::Tensor grouped(const at::Tensor& x) const;
  at::Tensor evaluator() const;
  at::Tensor weights(const at::Tensor& key, const at::Tensor& query) const;
  at::Tensor complete() const;
  at::Tensor by_head(const at::Tensor& core) const;
  at::Tensor core_of(const at::Tensor& by_group) const;
  at::Tensor ungrouped(const at::Tensor& by_group) const;
  at::Tensor query_gradient(const at::Tensor& by_group) const;
  at::Tensor reduced(const at::Tensor& x) const;
  at::Tensor spread(const at::Tensor& x, const at::Tensor& grad) const;

  const Arguments& in_;
  std::int64_t heads_;   // P
  std::int64_t groups_;  // m
  std::int64_t tokens_;
  std::int64_t queries_;
  at::ScalarType dtype_;
  at::Tensor begin_;  // [B, 1]: where each row's groups begin; not defined: at `first`
};

// Tokens index [B, n] of x [B, h, *, D]: [B, h, n, D].
at::Tensor Pool::gathered(const at::Tensor& x, const at::Tensor& index) const {
  return at::gather(x, 2,
                    index.view({index.size(0), 1, index.size(1), 1})
                        .expand({x.size(0), x.size(1), index.size(1), x.size(3)}));
}

// Tokens of the groups, [B, G, m, g, D].
at::Tensor Pool::grouped(const at::Tensor& x) const {
  const at::Tensor tokens = begin_.defined()
                                ? gathered(x, begin_.add(numbers(span())).clamp_max(tokens_ - 1))
                                : x.narrow(2, in_.first, span());
  return tokens.to(dtype_).unflatten(2, {groups_, in_.group});
}

// Queries that give weights, [B, G, m, R, D].
at::Tensor Pool::evaluator() const {
  if (in_.query.size(1) == 0) {  // nobody's attention counts: tokens weigh the same
    const std::int64_t rows = in_.per_kv_head ? 1 : 0;
    return at::zeros({in_.key.size(0), key_heads(), groups_, rows, in_.key.size(3)},
                     in_.key.options().dtype(dtype_));
  }
  at::Tensor query;  // [B, H, m, D]
  if (queries_ == 0) {
    query = at::zeros({in_.key.size(0), in_.query.size(1), groups_, in_.key.size(3)},
                      in_.key.options());
  } else if (begin_.defined()) {
    const at::Tensor last = begin_.add(numbers(groups_).mul(in_.group))
                                .add(in_.group - 1 - (tokens_ - queries_))
                                .clamp(0, queries_ - 1);
    query = gathered(in_.query, last);
  } else {
    query = in_.query.slice(2, first_evaluator(), first_evaluator() + span(), in_.group);
  }
  query = query.to(dtype_).unflatten(1, {key_heads(), in_.query.size(1) / key_heads()});
  if (in_.per_kv_head) {
    query = query.mean(2, true);
  }
  return query.permute({0, 1, 3, 2, 4});
}

// Of the tokens of each group, [B, G, m, g, R].
at::Tensor Pool::weights(const at::Tensor& key, const at::Tensor& query) const {
  return at::softmax(at::matmul(key, query.transpose(3, 4)).mul(scale_of(in_)), 3);
}

// Whether rows have groups, [B, 1, m, 1].
at::Tensor Pool::complete() const {
  return begin_.add(numbers(groups_).add(1).mul(in_.group)).le(tokens_).unsqueeze(1).unsqueeze(3);
}

// Gradients of core tokens [B, P, m, D] as [B, G, m, R, D].
at::Tensor Pool::by_head(const at::Tensor& core) const {
  return core.to(dtype_).unflatten(1, {key_heads(), evaluators()}).permute({0, 1, 3, 2, 4});
}

// [B, G, m, R, D] as core tokens [B, P, m, D], zeros for groups that are not there.
at::Tensor Pool::core_of(const at::Tensor& by_group) const {
  const at::Tensor core = by_group.permute({0, 1, 3, 2, 4}).flatten(1, 2);
  return begin_.defined() ? at::where(complete(), core, 0.0) : core;
}

// Gradients of the groups' tokens [B, G, m, g, D] at their places, [B, G, S, D].
at::Tensor Pool::ungrouped(const at::Tensor& by_group) const {
  const at::Tensor flat = by_group.flatten(2, 3);
  if (!begin_.defined()) {
    const at::Tensor out = at::zeros(in_.key.sizes(), in_.key.options());
    out.narrow(2, in_.first, span()).copy_(flat);
    return out;
  }
  const at::Tensor place = numbers(tokens_).sub(begin_);  // [B, S]
  const at::Tensor end = begin_.neg().add(tokens_).floor_divide(in_.group).mul(in_.group);
  const at::Tensor is_grouped = place.ge(0).logical_and(place.lt(end.clamp_max(span())));
  const at::Tensor all = gathered(flat, place.clamp(0, span() - 1));
  return at::where(is_grouped.unsqueeze(1).unsqueeze(3), all, 0.0).to(in_.key.scalar_type());
}

// Gradients of the evaluators [B, G, m, R, D] at the queries' places, [B, H, T, D].
at::Tensor Pool::query_gradient(const at::Tensor& by_group) const {
  const std::int64_t share = in_.query.size(1) / key_heads();
  if (share == 0) {
    return at::empty(in_.query.sizes(), in_.key.options());
  }
  at::Tensor of_heads = by_group.permute({0, 1, 3, 2, 4});  // [B, G, R, m, D]
  if (in_.per_kv_head) {
    of_heads = of_heads.div(static_cast<double>(share)).expand({-1, -1, share, -1, -1});
  }
  of_heads = of_heads.flatten(1, 2);
  if (!begin_.defined() || queries_ == 0) {
    const at::Tensor out = at::zeros(in_.query.sizes(), in_.key.options());
    if (queries_ > 0) {
      out.slice(2, first_evaluator(), first_evaluator() + span(), in_.group).copy_(of_heads);
    }
    return out;
  }
  const at::Tensor place = numbers(queries_).add(tokens_ - queries_).sub(begin_);  // [B, T]
  const at::Tensor group = place.floor_divide(in_.group);
  const at::Tensor is_last = place.ge(0)
                                 .logical_and(place.lt(span()))
                                 .logical_and(place.remainder(in_.group).eq(in_.group - 1));
  const at::Tensor all = gathered(of_heads, group.clamp(0, groups_ - 1));
  return at::where(is_last.unsqueeze(1).unsqueeze(3), all, 0.0).to(in_.key.scalar_type());
}

// The mean or the maximum of groups [B, G, m, g, D], [B, G, m, 1, D].
at::Tensor Pool::reduced(const at::Tensor& x) const {
  return in_.kind == "mean" ? x.mean(3, true) : std::get<0>(x.max(3, true));
}

// The gradient of groups x from that of reduced(x).
at::Tensor Pool::spread(const at::Tensor& x, const at::Tensor& grad) const {
  if (in_.kind == "mean") {
    return grad.div(static_cast<double>(in_.group)).expand(x.sizes());
  }
  return at::zeros(x.sizes(), x.options()).scatter_(3, std::get<1>(x.max(3, true)), grad);
}

Pooled Pool::pooled() const {
  const at::Tensor key = grouped(in_.key);
  const at::Tensor value = grouped(in_.value);
  if (!has_evaluator(in_)) {
    return {core_of(reduced(key)), core_of(reduced(value))};
  }
  const at::Tensor shares = weights(key, evaluator()).transpose(3, 4);
  return {core_of(at::matmul(shares, key)), core_of(at::matmul(shares, value))};
}

Gradients Pool::backward(const at::Tensor& grad_key, const at::Tensor& grad_value) const {
  const at::Tensor key = grouped(in_.key);
  const at::Tensor value = grouped(in_.value);
  const at::Tensor of_key = by_head(grad_key);
  const at::Tensor of_value = by_head(grad_value);
  if (!has_evaluator(in_)) {
    return {{}, ungrouped(spread(key, of_key)), ungrouped(spread(value, of_value))};
  }
  const at::Tensor query = evaluator();
  const at::Tensor w = weights(key, query);
  const at::Tensor of_w =
      at::matmul(key, of_key.transpose(3, 4)).add(at::matmul(value, of_value.transpose(3, 4)));
  const at::Tensor of_logits =
      w.mul(of_w.sub(w.mul(of_w).sum(3, true))).mul(scale_of(in_));  // [B, G, m, g, R]
  return {query_gradient(at::matmul(of_logits.transpose(3, 4), key)),
          ungrouped(at::matmul(w, of_key).add(at::matmul(of_logits, query))),
          ungrouped(at::matmul(w, of_value))};
}

// A row begins at a token that is there, and its groups' last tokens have queries.
void check_start(const Arguments& in, std::int64_t groups, std::int64_t start) {
  const std::int64_t tokens = in.key.size(2);
  TORCH_CHECK_VALUE(start >= 0 && start <= tokens, in.function, ": start must be in 0..", tokens,
                    ", got ", start);
  if (has_evaluator(in) && groups > 0) {
    const std::int64_t queries = in.query.size(2);
    const std::int64_t least = tokens - (start + in.first + in.group - 1);
    TORCH_CHECK_VALUE(least < 1 || queries >= least, in.function,
                      ": query must hold the last token of every group, so at least ", least,
                      " tokens, got ", queries);
  }
}

// The same of all rows on a device that is not waited for, bool [B, 1, 1, 1].
at::Tensor is_refused(const Arguments& in, std::int64_t groups) {
  const std::int64_t tokens = in.key.size(2);
  at::Tensor refused = in.start.lt(0).logical_or(in.start.gt(tokens));
  if (has_evaluator(in) && groups > 0) {
    const at::Tensor least = in.start.neg().add(tokens - (in.first + in.group - 1));
    refused = refused.logical_or(least.ge(1).logical_and(least.gt(in.query.size(2))));
  }
  return refused.view({-1, 1, 1, 1});
}

// Rows that are refused are NaN on a GPU, as those of our kernel.
void spoil_refused(const Arguments& in, std::int64_t groups,
                   std::initializer_list<const at::Tensor*> results) {
  if (!in.start.defined() || in.start.is_cpu()) {
    return;
  }
  const at::Tensor refused = is_refused(in, groups);
  for (const at::Tensor* result : results) {
    if (result->dim() == 4) {
      result->masked_fill_(refused, std::numeric_limits<double>::quiet_NaN());
    }
  }
}

}  // namespace

void check_values(const Arguments& in, std::int64_t groups) {
  if (!in.start.defined()) {
    check_start(in, groups, 0);
  } else if (in.start.is_cpu() && checks::has_memory(in.start)) {  // a GPU is not waited for
    const at::Tensor starts = in.start.contiguous();
    const auto* values = starts.const_data_ptr<std::int64_t>();
    for (std::int64_t row = 0; row < starts.numel(); ++row) {
      check_start(in, groups, values[row]);
    }
  }
}

double scale_of(const Arguments& in) {
  return in.scale.value_or(1.0 / std::sqrt(static_cast<double>(in.key.size(3))));
}

void pool_torch(const Arguments& in, const at::Tensor& core_key, const at::Tensor& core_value) {
  const autocast::Off off;
  check_values(in, core_key.size(2));
  const Pool pool(in, core_key.size(1), core_key.size(2));
  if (core_key.numel() == 0) {
    return;
  }
  const auto [key, value] = pool.pooled();
  core_key.copy_(key);
  core_value.copy_(value);
  spoil_refused(in, core_key.size(2), {&core_key, &core_value});
}

Gradients pool_backward_torch(const Arguments& in, const at::Tensor& grad_key,
                              const at::Tensor& grad_value) {
  const autocast::Off off;
  check_values(in, grad_key.size(2));
  const Pool pool(in, grad_key.size(1), grad_key.size(2));
  const auto zeros = [&in](at::IntArrayRef sizes) { return at::zeros(sizes, in.key.options()); };
  if (grad_key.numel() == 0) {
    return {has_evaluator(in) ? zeros(in.query.sizes()) : zeros({0}), zeros(in.key.sizes()),
            zeros(in.value.sizes())};
  }
  auto [query, key, value] = pool.backward(grad_key, grad_value);
  query = query.defined() ? query : zeros({0});
  spoil_refused(in, grad_key.size(2), {&query, &key, &value});
  return {query, key, value};
}

}  // namespace paperlab::ops::pooling
