#pragma once
// What is left of the gradients of pooling: a maximum's, which goes to the first token that has it,
// and zeros for tokens and queries that no group has.

#include "kernels/group_pool/block_backward.h"

namespace paperlab::kernels {

template <class T>
struct PoolMaxRegisters {
  NumberOf<T> most[kLaneNumbers];
  std::int32_t at[kLaneNumbers];  // the first token that has the maximum; groups are below 2^31
  Pack rows[kPoolSteps<T>][kPoolPacks<T>];
};

struct Smaller {
  template <class Number>
  PAPERLAB_HD Number operator()(Number a, Number b) const {
    return a < b ? a : b;
  }
};

// The first of a thread's tokens whose number is the maximum of its column: at is lowered to it.
template <class T>
PAPERLAB_HD void find_maxima(const PoolPlan& plan, int thread, std::int64_t chunk,
                             PoolMaxRegisters<T>& own) {
  PAPERLAB_UNROLL
  for (int step = 0; step < kPoolSteps<T>; ++step) {
    const std::int64_t n = plan.token(thread, chunk, kPoolSteps<T>, step);
    NumberOf<T> row[kLaneNumbers];
    widen_part<T>(own.rows[step], row);
    PAPERLAB_UNROLL
    for (int i = 0; i < kLaneNumbers; ++i) {
      const bool is_it = row[i] == own.most[i] || row[i] != row[i];
      own.at[i] = is_it && n < own.at[i] && n < plan.layout.group ? static_cast<std::int32_t>(n)
                                                                  : own.at[i];
    }
  }
}

// Reads a chunk unless it is the only one and was read before.
template <class T>
PAPERLAB_HD void load_again(const ConstTensorView& view, const PoolPlan& plan, const PoolHead& head,
                            int thread, std::int64_t chunk, PoolMaxRegisters<T>& own) {
  if (plan.num_chunks(kPoolSteps<T>) > 1) {
    load_tokens<T>(view, plan, head, thread, chunk, own.rows);
  }
}

// The gradient of one tensor's tokens.
template <class T, class AnyTeam>
PAPERLAB_HD void spread_maximum(AnyTeam& team, const ConstTensorView& view, const PoolPlan& plan,
                                const PoolHead& head, const ConstTensorView& grad,
                                const TensorView& out) {
  using Number = NumberOf<T>;
  using Own = PoolMaxRegisters<T>;
  const std::int64_t chunks = plan.num_chunks(kPoolSteps<T>);
  team.each_alone([&](int thread, Own& own) {
    PAPERLAB_UNROLL
    for (int i = 0; i < kLaneNumbers; ++i) {
      own.most[i] = -INFINITY;
      own.at[i] = static_cast<std::int32_t>(plan.layout.group);
    }
    for (std::int64_t chunk = 0; chunk < chunks; ++chunk) {
      load_tokens<T>(view, plan, head, thread, chunk, own.rows);
      add_maxima<T>(plan, thread, chunk, own.rows, own.most);
    }
  });
  combine_slots<kLaneNumbers>(
      team, plan, [](int, Own& own, int i) -> Number& { return own.most[i]; }, LargerOrNan{});
  team.each_alone([&](int thread, Own& own) {
    for (std::int64_t chunk = 0; chunk < chunks; ++chunk) {
      load_again(view, plan, head, thread, chunk, own);
      find_maxima<T>(plan, thread, chunk, own);
    }
  });
  combine_slots<kLaneNumbers>(
      team, plan, [](int, Own& own, int i) -> std::int32_t& { return own.at[i]; }, Smaller{});
  team.each_alone([&](int thread, Own& own) {
    Number of_core[kLaneNumbers];
    load_numbers(token_row<T>(grad, head.item.batch, head.pooled, head.item.group), plan, thread,
                 of_core);
    for (std::int64_t n = plan.slot(thread); n < plan.layout.group; n += plan.slots()) {
      Number row[kLaneNumbers];
      PAPERLAB_UNROLL
      for (int i = 0; i < kLaneNumbers; ++i) {
        row[i] = own.at[i] == n ? of_core[i] : 0;
      }
      store_numbers<T>(token_row<T>(out, head.item.batch, head.item.key_head, head.first_token + n),
                       plan, thread, row);
    }
  });
}

// kMax. Warp `number` of num_pool_warps.
template <class T, class AnyTeam>
PAPERLAB_HD void pool_max_warp(AnyTeam& team, const GroupPoolInputs& in, const PoolPlan& plan,
                               const GroupPoolGradients& of, std::int64_t number) {
  const PoolHead head = pool_head(plan, number);
  if (head.is_complete) {
    spread_maximum<T>(team, in.key, plan, head, of.grad_key, of.key);
    spread_maximum<T>(team, in.value, plan, head, of.grad_value, of.value);
  }
}

// ---------------------------------------------------------------------------------------------

// Warps: runs of kPoolSteps tokens a slot of each key head.
template <class T>
PAPERLAB_HD std::int64_t num_clear_runs(const PoolPlan& plan) {
  const std::int64_t tokens = std::int64_t{kPoolSteps<T>} * plan.slots();
  return (plan.layout.num_tokens + tokens - 1) / tokens;
}
template <class T>
PAPERLAB_HD std::int64_t num_clear_warps(const PoolPlan& plan) {
  return plan.layout.batch * plan.layout.key_heads * num_clear_runs<T>(plan);
}

// What no complete group has of token t of a key head: the gradients of its key and value, and of
// its queries unless they evaluate.
template <class T>
PAPERLAB_HD void clear_token(const PoolPlan& plan, const GroupPoolGradients& of, std::int64_t b,
                             std::int64_t key_head, std::int64_t t, int thread) {
  const PoolLayout& layout = plan.layout;
  const PoolRow row = pool_row(plan, b);
  const std::int64_t behind = row.first + row.complete * layout.group;
  const bool is_pooled = row.first <= t && t < behind;
  if (!is_pooled) {
    fill_token_row<T>(token_row<T>(of.key, b, key_head, t), plan, thread, row.fill);
    fill_token_row<T>(token_row<T>(of.value, b, key_head, t), plan, thread, row.fill);
  }
  const bool is_evaluator = is_pooled && (t - row.first + 1) % layout.group == 0;
  if (plan.kind != PoolKind::kAttention || is_evaluator || layout.query_of(t) < 0) {
    return;
  }
  for (std::int64_t h = 0; h < layout.query_share; ++h) {
    fill_token_row<T>(
        token_row<T>(of.query, b, key_head * layout.query_share + h, layout.query_of(t)), plan,
        thread, row.fill);
  }
}

// Warp `number` of num_clear_warps. T: any type of the elements' size.
template <class T, class AnyTeam>
PAPERLAB_HD void pool_clear_warp(AnyTeam& team, const PoolPlan& plan, const GroupPoolGradients& of,
                                 std::int64_t number) {
  const std::int64_t run = number % num_clear_runs<T>(plan);
  const std::int64_t head = number / num_clear_runs<T>(plan);
  team.each_alone([&](int thread, auto&) {
    for (int step = 0; step < kPoolSteps<T>; ++step) {
      const std::int64_t t = plan.token(thread, run, kPoolSteps<T>, step);
      if (t < plan.layout.num_tokens) {
        clear_token<T>(plan, of, head / plan.layout.key_heads, head % plan.layout.key_heads, t,
                       thread);
      }
    }
  });
}

}  // namespace paperlab::kernels
