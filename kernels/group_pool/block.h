#pragma once
// What a warp of the GPU does: one pooled head of one group, its keys and values read once. A long
// group comes in chunks, whose softmax is rescaled as the maximum grows.

#include <cmath>

#include "kernels/group_pool/block_rows.h"

namespace paperlab::kernels {

template <class T>
struct PoolRegisters {
  NumberOf<T> query[kLaneNumbers];
  NumberOf<T> key_sum[kLaneNumbers];
  NumberOf<T> value_sum[kLaneNumbers];
  NumberOf<T> logit[kPoolSteps<T>];
  NumberOf<T> most;   // of the logits so far
  NumberOf<T> later;  // of a chunk
  NumberOf<T> sum;    // of exp(logit - most)
  Pack key[kPoolSteps<T>][kPoolPacks<T>];
  Pack value[kPoolSteps<T>][kPoolPacks<T>];
};

// Column i of the keys' sums, then of the values'.
struct PoolColumn {
  template <class Own>
  PAPERLAB_HD auto& operator()(int, Own& own, int i) const {
    return i < kLaneNumbers ? own.key_sum[i] : own.value_sum[i - kLaneNumbers];
  }
};

// Host. Warps of the launch.
inline std::int64_t num_pool_warps(const PoolLayout& layout) {
  return layout.num_items(false) * layout.pooled_share;
}
template <class T>
PoolPlan pool_plan(const GroupPoolInputs& in, const GroupPoolOutputs& out) {
  PoolPlan plan = pool_plan<T>(in, pool_layout(in, out.key.size[1], out.key.size[2]));
  plan.is_whole = plan.is_whole && has_whole_rows<T>(out.key) && has_whole_rows<T>(out.value);
  return plan;
}

template <class T>
PAPERLAB_HD void begin_pool(const GroupPoolInputs& in, const PoolPlan& plan, const PoolHead& head,
                            int thread, PoolRegisters<T>& own) {
  PAPERLAB_UNROLL
  for (int i = 0; i < kLaneNumbers; ++i) {
    own.query[i] = 0;
    own.key_sum[i] = 0;
    own.value_sum[i] = 0;
  }
  own.most = -INFINITY;
  own.sum = 0;
  if (plan.kind == PoolKind::kAttention) {
    load_evaluator<T>(in, plan, head, thread, own.query);
  }
}

// A thread's share of the products of the evaluator and its tokens' keys.
template <class T>
PAPERLAB_HD void begin_logits(PoolRegisters<T>& own) {
  PAPERLAB_UNROLL
  for (int step = 0; step < kPoolSteps<T>; ++step) {
    NumberOf<T> key[kLaneNumbers];
    widen_part<T>(own.key[step], key);
    own.logit[step] = dot_of_part(own.query, key);
  }
}

// The chunk's logits: minus infinity behind the last token; the same for all of them for a mean.
template <class T>
PAPERLAB_HD void finish_logits(const PoolPlan& plan, NumberOf<T> scale, int thread,
                               std::int64_t chunk, PoolRegisters<T>& own) {
  own.later = own.most;
  PAPERLAB_UNROLL
  for (int step = 0; step < kPoolSteps<T>; ++step) {
    const bool exists = plan.token(thread, chunk, kPoolSteps<T>, step) < plan.layout.group;
    const NumberOf<T> logit = plan.kind == PoolKind::kMean ? 0 : own.logit[step] * scale;
    own.logit[step] = exists ? logit : -INFINITY;
    own.later = Larger{}(own.logit[step], own.later);
  }
}

// Adds the chunk's tokens, whose largest logit is `later`.
template <class T>
PAPERLAB_HD void add_tokens(PoolRegisters<T>& own) {
  using Number = NumberOf<T>;
  const Number rescale = std::exp(own.most - own.later);  // 0 the first time
  own.most = own.later;
  own.sum *= rescale;
  PAPERLAB_UNROLL
  for (int i = 0; i < kLaneNumbers; ++i) {
    own.key_sum[i] *= rescale;
    own.value_sum[i] *= rescale;
  }
  PAPERLAB_UNROLL
  for (int step = 0; step < kPoolSteps<T>; ++step) {
    const Number weight = std::exp(own.logit[step] - own.most);
    own.sum += weight;
    Number row[kLaneNumbers];
    widen_part<T>(own.key[step], row);
    PAPERLAB_UNROLL
    for (int i = 0; i < kLaneNumbers; ++i) {
      own.key_sum[i] = fused(weight, row[i], own.key_sum[i]);
    }
    widen_part<T>(own.value[step], row);
    PAPERLAB_UNROLL
    for (int i = 0; i < kLaneNumbers; ++i) {
      own.value_sum[i] = fused(weight, row[i], own.value_sum[i]);
    }
  }
}

// kAttention and kMean.
template <class T, class AnyTeam>
PAPERLAB_HD void average_group(AnyTeam& team, const GroupPoolInputs& in, const PoolPlan& plan,
                               const PoolHead& head) {
  using Number = NumberOf<T>;
  using Own = PoolRegisters<T>;
  for (std::int64_t chunk = 0; chunk < plan.num_chunks(kPoolSteps<T>); ++chunk) {
    team.each_alone([&](int thread, Own& own) {
      load_tokens<T>(in.key, plan, head, thread, chunk, own.key);
      load_tokens<T>(in.value, plan, head, thread, chunk, own.value);
      begin_logits<T>(own);
    });
    sum_neighbours<kPoolSteps<T>>(team, plan.lanes(),
                                  [](int, Own& own, int i) -> Number& { return own.logit[i]; });
    team.each_alone([&](int thread, Own& own) {
      finish_logits<T>(plan, static_cast<Number>(in.scale), thread, chunk, own);
    });
    combine_slots<1>(team, plan, [](int, Own& own, int) -> Number& { return own.later; }, Larger{});
    team.each_alone([](int, Own& own) { add_tokens<T>(own); });
  }
  combine_slots<1>(team, plan, [](int, Own& own, int) -> Number& { return own.sum; }, Plus{});
  combine_slots<2 * kLaneNumbers>(team, plan, PoolColumn{}, Plus{});
  team.each_alone([](int, Own& own) {
    PAPERLAB_UNROLL
    for (int i = 0; i < kLaneNumbers; ++i) {
      own.key_sum[i] /= own.sum;
      own.value_sum[i] /= own.sum;
    }
  });
}

// The largest of each column of a thread's tokens that exist, with `most`.
template <class T>
PAPERLAB_HD void add_maxima(const PoolPlan& plan, int thread, std::int64_t chunk,
                            const Pack (&rows)[kPoolSteps<T>][kPoolPacks<T>],
                            NumberOf<T> (&most)[kLaneNumbers]) {
  PAPERLAB_UNROLL
  for (int step = 0; step < kPoolSteps<T>; ++step) {
    const bool exists = plan.token(thread, chunk, kPoolSteps<T>, step) < plan.layout.group;
    NumberOf<T> row[kLaneNumbers];
    widen_part<T>(rows[step], row);
    PAPERLAB_UNROLL
    for (int i = 0; i < kLaneNumbers; ++i) {
      most[i] = exists ? LargerOrNan{}(row[i], most[i]) : most[i];
    }
  }
}

template <class T, class AnyTeam>
PAPERLAB_HD void maxima_of_group(AnyTeam& team, const GroupPoolInputs& in, const PoolPlan& plan,
                                 const PoolHead& head) {
  using Own = PoolRegisters<T>;
  team.each_alone([&](int thread, Own& own) {
    PAPERLAB_UNROLL
    for (int i = 0; i < kLaneNumbers; ++i) {
      own.key_sum[i] = -INFINITY;
      own.value_sum[i] = -INFINITY;
    }
    for (std::int64_t chunk = 0; chunk < plan.num_chunks(kPoolSteps<T>); ++chunk) {
      load_tokens<T>(in.key, plan, head, thread, chunk, own.key);
      load_tokens<T>(in.value, plan, head, thread, chunk, own.value);
      add_maxima<T>(plan, thread, chunk, own.key, own.key_sum);
      add_maxima<T>(plan, thread, chunk, own.value, own.value_sum);
    }
  });
  combine_slots<2 * kLaneNumbers>(team, plan, PoolColumn{}, LargerOrNan{});
}

// Warp `number` of num_pool_warps: the pooled key and value.
template <class T, class AnyTeam>
PAPERLAB_HD void pool_warp(AnyTeam& team, const GroupPoolInputs& in, const PoolPlan& plan,
                           const GroupPoolOutputs& out, std::int64_t number) {
  const PoolHead head = pool_head(plan, number);
  if (head.is_complete && plan.kind == PoolKind::kMax) {
    maxima_of_group<T>(team, in, plan, head);
  } else if (head.is_complete) {
    team.each_alone(
        [&](int thread, PoolRegisters<T>& own) { begin_pool<T>(in, plan, head, thread, own); });
    average_group<T>(team, in, plan, head);
  }
  team.each_alone([&](int thread, PoolRegisters<T>& own) {
    if (plan.slot(thread) != 0) {
      return;
    }
    T* key = token_row<T>(out.key, head.item.batch, head.pooled, head.item.group);
    T* value = token_row<T>(out.value, head.item.batch, head.pooled, head.item.group);
    if (head.is_complete) {
      store_numbers<T>(key, plan, thread, own.key_sum);
      store_numbers<T>(value, plan, thread, own.value_sum);
    } else {
      fill_token_row<T>(key, plan, thread, head.fill);
      fill_token_row<T>(value, plan, thread, head.fill);
    }
  });
}

}  // namespace paperlab::kernels
