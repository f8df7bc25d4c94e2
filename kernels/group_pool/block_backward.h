#pragma once
// Gradients of pooling in warps of the GPU; the equations stand in reference.cpp. Three launches
// that write disjoint memory: the weights w and da of each pooled head, with the evaluators'
// gradients; from them the gradients of keys and values (for a maximum those of the first token
// that has it), summed over pooled heads in order; zeros for what no group has.

#include "kernels/group_pool/block.h"

namespace paperlab::kernels {

constexpr int kSpreadSteps = 2;  // tokens of a lane at once

template <class T>
PoolPlan pool_plan(const GroupPoolInputs& in, const GroupPoolGradients& of) {
  PoolPlan plan = pool_plan<T>(in, pool_layout(in, of.grad_key.size[1], of.grad_key.size[2]));
  plan.is_whole = plan.is_whole && has_whole_rows<T>(of.grad_key) &&
                  has_whole_rows<T>(of.grad_value) && has_whole_rows<T>(of.query) &&
                  has_whole_rows<T>(of.key) && has_whole_rows<T>(of.value);
  return plan;
}

// w [g], then da [g], of each pooled head of a group: numbers.
PAPERLAB_HD constexpr std::int64_t weights_at(const PoolLayout& layout, std::int64_t number) {
  return 2 * layout.group * number;
}

template <class T>
struct PoolGradRegisters {
  NumberOf<T> query[kLaneNumbers];
  NumberOf<T> grad_key[kLaneNumbers];
  NumberOf<T> grad_value[kLaneNumbers];
  NumberOf<T> grad_query[kLaneNumbers];
  NumberOf<T> logit[kPoolSteps<T>];
  NumberOf<T> of_weight[kPoolSteps<T>];
  NumberOf<T> most;
  NumberOf<T> later;
  NumberOf<T> sum;  // of exp(logit - most)
  NumberOf<T> dot;  // of exp(logit - most) dw
  Pack key[kPoolSteps<T>][kPoolPacks<T>];
};

template <class T>
PAPERLAB_HD void load_core_gradients(const GroupPoolGradients& of, const PoolPlan& plan,
                                     const PoolHead& head, int thread,
                                     NumberOf<T> (&grad_key)[kLaneNumbers],
                                     NumberOf<T> (&grad_value)[kLaneNumbers]) {
  load_numbers(token_row<T>(of.grad_key, head.item.batch, head.pooled, head.item.group), plan,
               thread, grad_key);
  load_numbers(token_row<T>(of.grad_value, head.item.batch, head.pooled, head.item.group), plan,
               thread, grad_value);
}

// A thread's shares of q . k and of dw = dk^G . k + dv^G . v of its tokens.
template <class T>
PAPERLAB_HD void begin_products(const GroupPoolInputs& in, const PoolPlan& plan,
                                const PoolHead& head, int thread, std::int64_t chunk,
                                PoolGradRegisters<T>& own) {
  Pack value[kPoolSteps<T>][kPoolPacks<T>];
  load_tokens<T>(in.key, plan, head, thread, chunk, own.key);
  load_tokens<T>(in.value, plan, head, thread, chunk, value);
  PAPERLAB_UNROLL
  for (int step = 0; step < kPoolSteps<T>; ++step) {
    NumberOf<T> row[kLaneNumbers];
    widen_part<T>(own.key[step], row);
    own.logit[step] = dot_of_part(own.query, row);
    own.of_weight[step] = dot_of_part(own.grad_key, row);
    widen_part<T>(value[step], row);
    own.of_weight[step] += dot_of_part(own.grad_value, row);
  }
}

// As finish_logits of block.h; both products are kept for the second pass.
template <class T>
PAPERLAB_HD void finish_products(const PoolPlan& plan, NumberOf<T> scale, int thread,
                                 std::int64_t chunk, NumberOf<T>* weights,
                                 PoolGradRegisters<T>& own) {
  own.later = own.most;
  PAPERLAB_UNROLL
  for (int step = 0; step < kPoolSteps<T>; ++step) {
    const std::int64_t n = plan.token(thread, chunk, kPoolSteps<T>, step);
    const bool exists = n < plan.layout.group;
    own.logit[step] = exists ? own.logit[step] * scale : -INFINITY;
    own.later = Larger{}(own.logit[step], own.later);
    if (exists && plan.lane(thread) == 0 && plan.num_chunks(kPoolSteps<T>) > 1) {
      weights[n] = own.logit[step];
      weights[plan.layout.group + n] = own.of_weight[step];
    }
  }
}

template <class T>
PAPERLAB_HD void add_products(PoolGradRegisters<T>& own) {
  const NumberOf<T> rescale = std::exp(own.most - own.later);
  own.most = own.later;
  own.sum *= rescale;
  own.dot *= rescale;
  PAPERLAB_UNROLL
  for (int step = 0; step < kPoolSteps<T>; ++step) {
    const NumberOf<T> weight = std::exp(own.logit[step] - own.most);
    own.sum += weight;
    own.dot = fused(weight, own.of_weight[step], own.dot);
  }
}

// First pass: the softmax's maximum, sum and mean of dw.
template <class T, class AnyTeam>
PAPERLAB_HD void sum_products(AnyTeam& team, const GroupPoolInputs& in, const PoolPlan& plan,
                              const PoolHead& head, NumberOf<T>* weights) {
  using Number = NumberOf<T>;
  using Own = PoolGradRegisters<T>;
  for (std::int64_t chunk = 0; chunk < plan.num_chunks(kPoolSteps<T>); ++chunk) {
    team.each_alone(
        [&](int thread, Own& own) { begin_products<T>(in, plan, head, thread, chunk, own); });
    sum_neighbours<2 * kPoolSteps<T>>(team, plan.lanes(), [](int, Own& own, int i) -> Number& {
      return i % 2 == 0 ? own.logit[i / 2] : own.of_weight[i / 2];
    });
    team.each_alone([&](int thread, Own& own) {
      finish_products<T>(plan, static_cast<Number>(in.scale), thread, chunk, weights, own);
    });
    combine_slots<1>(team, plan, [](int, Own& own, int) -> Number& { return own.later; }, Larger{});
    team.each([](int, Own& own) { add_products<T>(own); });
  }
  combine_slots<2>(
      team, plan, [](int, Own& own, int i) -> Number& { return i == 0 ? own.sum : own.dot; },
      Plus{});
}

// Second pass over a chunk: writes w and da, adds da k to the evaluator's gradient.
template <class T>
PAPERLAB_HD void finish_weights(const GroupPoolInputs& in, const PoolPlan& plan,
                                const PoolHead& head, int thread, std::int64_t chunk,
                                NumberOf<T>* weights, PoolGradRegisters<T>& own) {
  const bool is_kept = plan.num_chunks(kPoolSteps<T>) == 1;
  if (!is_kept) {
    load_tokens<T>(in.key, plan, head, thread, chunk, own.key);
  }
  PAPERLAB_UNROLL
  for (int step = 0; step < kPoolSteps<T>; ++step) {
    const std::int64_t n = plan.token(thread, chunk, kPoolSteps<T>, step);
    if (n < plan.layout.group) {
      NumberOf<T>* grad_logits = weights + plan.layout.group;
      const NumberOf<T> logit = is_kept ? own.logit[step] : weights[n];
      const NumberOf<T> of_weight = is_kept ? own.of_weight[step] : grad_logits[n];
      const NumberOf<T> weight = std::exp(logit - own.most) / own.sum;
      const NumberOf<T> grad =
          weight * (of_weight - own.dot / own.sum) * static_cast<NumberOf<T>>(in.scale);
      own.logit[step] = weight;
      own.of_weight[step] = grad;
      NumberOf<T> row[kLaneNumbers];
      widen_part<T>(own.key[step], row);
      PAPERLAB_UNROLL
      for (int i = 0; i < kLaneNumbers; ++i) {
        own.grad_query[i] = fused(grad, row[i], own.grad_query[i]);
      }
    }
  }
}

template <class T>
PAPERLAB_HD void store_weights(const PoolPlan& plan, int thread, std::int64_t chunk,
                               NumberOf<T>* weights, const PoolGradRegisters<T>& own) {
  PAPERLAB_UNROLL
  for (int step = 0; step < kPoolSteps<T>; ++step) {
    const std::int64_t n = plan.token(thread, chunk, kPoolSteps<T>, step);
    if (n < plan.layout.group && plan.lane(thread) == 0) {
      weights[n] = own.logit[step];
      weights[plan.layout.group + n] = own.of_weight[step];
    }
  }
}

template <class T>
PAPERLAB_HD void store_grad_query(const PoolPlan& plan, const PoolHead& head,
                                  const GroupPoolGradients& of, int thread,
                                  PoolGradRegisters<T>& own) {
  const std::int64_t last = plan.layout.query_of(head.first_token + plan.layout.group - 1);
  PAPERLAB_UNROLL
  for (int i = 0; i < kLaneNumbers; ++i) {
    own.grad_query[i] /= static_cast<NumberOf<T>>(head.num_queries);
  }
  for (std::int64_t h = plan.slot(thread); h < head.num_queries; h += plan.slots()) {
    store_numbers<T>(token_row<T>(of.query, head.item.batch, head.first_query + h, last), plan,
                     thread, own.grad_query);
  }
}

// kAttention. Warp `number` of num_pool_warps: w, da and the gradients of the evaluator's queries.
template <class T, class AnyTeam>
PAPERLAB_HD void pool_weights_warp(AnyTeam& team, const GroupPoolInputs& in, const PoolPlan& plan,
                                   const GroupPoolGradients& of, std::int64_t number,
                                   NumberOf<T>* scratch) {
  using Number = NumberOf<T>;
  using Own = PoolGradRegisters<T>;
  const PoolHead head = pool_head(plan, number);
  if (!head.is_complete) {
    return;
  }
  Number* weights = scratch + weights_at(plan.layout, number);
  team.each_alone([&](int thread, Own& own) {
    load_evaluator<T>(in, plan, head, thread, own.query);
    load_core_gradients<T>(of, plan, head, thread, own.grad_key, own.grad_value);
    PAPERLAB_UNROLL
    for (int i = 0; i < kLaneNumbers; ++i) {
      own.grad_query[i] = 0;
    }
    own.most = -INFINITY;
    own.sum = 0;
    own.dot = 0;
  });
  sum_products<T>(team, in, plan, head, weights);
  for (std::int64_t chunk = 0; chunk < plan.num_chunks(kPoolSteps<T>); ++chunk) {
    team.each([&](int thread, Own& own) {
      finish_weights<T>(in, plan, head, thread, chunk, weights, own);
    });
    team.each_alone(
        [&](int thread, Own& own) { store_weights<T>(plan, thread, chunk, weights, own); });
  }
  combine_slots<kLaneNumbers>(
      team, plan, [](int, Own& own, int i) -> Number& { return own.grad_query[i]; }, Plus{});
  team.each_alone([&](int thread, Own& own) { store_grad_query<T>(plan, head, of, thread, own); });
}

// ---------------------------------------------------------------------------------------------

// Warps: the chunks of kSpreadSteps tokens of all items.
PAPERLAB_HD inline std::int64_t num_spread_warps(const PoolPlan& plan) {
  return plan.layout.num_items(false) * plan.num_chunks(kSpreadSteps);
}

template <class T>
struct PoolSpreadRegisters {
  NumberOf<T> key[kSpreadSteps][kLaneNumbers];
  NumberOf<T> value[kSpreadSteps][kLaneNumbers];
};

// Adds what one pooled head gives to a thread's tokens.
template <class T>
PAPERLAB_HD void spread_head(const GroupPoolInputs& in, const PoolPlan& plan,
                             const GroupPoolGradients& of, const PoolHead& head,
                             const NumberOf<T>* weights, int thread, std::int64_t chunk,
                             PoolSpreadRegisters<T>& own) {
  using Number = NumberOf<T>;
  const bool has_evaluator = plan.kind == PoolKind::kAttention;
  Number grad_key[kLaneNumbers];
  Number grad_value[kLaneNumbers];
  Number query[kLaneNumbers] = {};
  load_core_gradients<T>(of, plan, head, thread, grad_key, grad_value);
  if (has_evaluator) {
    load_evaluator<T>(in, plan, head, thread, query);
  }
  PAPERLAB_UNROLL
  for (int step = 0; step < kSpreadSteps; ++step) {
    const std::int64_t n = plan.token(thread, chunk, kSpreadSteps, step);
    const bool is_read = has_evaluator && n < plan.layout.group;
    const Number weight = is_read ? weights[n] : Number{1} / static_cast<Number>(plan.layout.group);
    const Number grad = is_read ? weights[plan.layout.group + n] : 0;
    PAPERLAB_UNROLL
    for (int i = 0; i < kLaneNumbers; ++i) {
      own.key[step][i] = fused(weight, grad_key[i], own.key[step][i]);
      own.key[step][i] = fused(grad, query[i], own.key[step][i]);
      own.value[step][i] = fused(weight, grad_value[i], own.value[step][i]);
    }
  }
}

// kAttention and kMean. Warp `number` of num_spread_warps: the gradients of its keys and values.
template <class T, class AnyTeam>
PAPERLAB_HD void pool_spread_warp(AnyTeam& team, const GroupPoolInputs& in, const PoolPlan& plan,
                                  const GroupPoolGradients& of, std::int64_t number,
                                  const NumberOf<T>* scratch) {
  using Own = PoolSpreadRegisters<T>;
  const PoolLayout& layout = plan.layout;
  const std::int64_t item = number / plan.num_chunks(kSpreadSteps);
  const std::int64_t chunk = number % plan.num_chunks(kSpreadSteps);
  const PoolHead first = pool_head(plan, item * layout.pooled_share);
  if (!first.is_complete) {
    return;
  }
  team.each_alone([&](int thread, Own& own) {
    PAPERLAB_UNROLL
    for (int i = 0; i < kSpreadSteps * kLaneNumbers; ++i) {
      own.key[i / kLaneNumbers][i % kLaneNumbers] = 0;
      own.value[i / kLaneNumbers][i % kLaneNumbers] = 0;
    }
    for (std::int64_t i = 0; i < layout.pooled_share; ++i) {
      PoolHead head = first;
      head.pooled += i;
      head.first_query += i * head.num_queries;
      spread_head<T>(in, plan, of, head,
                     scratch + weights_at(layout, item * layout.pooled_share + i), thread, chunk,
                     own);
    }
    PAPERLAB_UNROLL
    for (int step = 0; step < kSpreadSteps; ++step) {
      const std::int64_t n = plan.token(thread, chunk, kSpreadSteps, step);
      if (n < layout.group) {
        const std::int64_t t = first.first_token + n;
        store_numbers<T>(token_row<T>(of.key, first.item.batch, first.item.key_head, t), plan,
                         thread, own.key[step]);
        store_numbers<T>(token_row<T>(of.value, first.item.batch, first.item.key_head, t), plan,
                         thread, own.value[step]);
      }
    }
  });
}

}  // namespace paperlab::kernels
