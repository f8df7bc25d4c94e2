#pragma once
// How a warp of the GPU has the tokens of a group: each token's row lies across some lanes, eight
// numbers in each, and the warp has as many tokens at once as lanes allow. Host-device.

#include <cmath>

#include "kernels/common/cuda/elements.h"
#include "kernels/common/cuda/reduce.h"
#include "kernels/group_pool/group_pool.h"
#include "kernels/group_pool/layout.h"
#include "kernels/group_pool/tile.h"

namespace paperlab::kernels {

constexpr int kPoolWarps = 4;    // of a block
constexpr int kLaneNumbers = 8;  // of a row in a lane
static_assert(std::int64_t{kWarp} * kLaneNumbers == kMaxPoolDim);

template <class T>
constexpr int kPoolPacks = kLaneNumbers / kPackSize<T>;  // of a row in a lane
template <class T>
constexpr int kPoolSteps = 8 / kPoolPacks<T>;  // tokens of a lane at once: 8 loads in flight

struct PoolPlan {
  PoolLayout layout = {};
  PoolKind kind = PoolKind::kAttention;
  const std::int64_t* start = nullptr;
  std::int64_t first = 0;
  int shift = 0;  // lanes of a row are a power of two
  bool is_whole = false;

  PAPERLAB_HD constexpr int lanes() const { return 1 << shift; }
  PAPERLAB_HD constexpr int slots() const { return kWarp >> shift; }  // tokens at once
  PAPERLAB_HD constexpr int lane(int thread) const { return thread & (lanes() - 1); }
  PAPERLAB_HD constexpr int slot(int thread) const { return thread >> shift; }
  // Chunks of a group of which a slot has `steps` tokens each.
  PAPERLAB_HD constexpr std::int64_t num_chunks(int steps) const {
    const std::int64_t tokens = std::int64_t{steps} * slots();
    return (layout.group + tokens - 1) / tokens;
  }
  // The group's token that a thread has in step `step` of a chunk; may be beyond the last.
  PAPERLAB_HD constexpr std::int64_t token(int thread, std::int64_t chunk, int steps,
                                           int step) const {
    return (chunk * steps + step) * slots() + slot(thread);
  }
};

// The lanes' exponent for rows of `packs`, `packs_of_lane` in each.
PAPERLAB_HD constexpr int pool_shift(std::int64_t packs, int packs_of_lane) {
  int shift = 0;
  while ((std::int64_t{packs_of_lane} << shift) < packs) {
    ++shift;
  }
  return shift;
}

template <class T, class Void>
bool has_whole_rows(const BasicTensorView<Void>& view) {
  bool is_whole = has_whole_packs<T>(view.size[3], {view.data}, {});
  for (int i = 0; i < 3; ++i) {
    is_whole = is_whole && (view.size[i] <= 1 || view.stride[i] % kPackSize<T> == 0);
  }
  return view.data == nullptr || is_whole;
}

// Host. The layout is that of the outputs' or gradients' pooled heads and groups.
template <class T>
PoolPlan pool_plan(const GroupPoolInputs& in, const PoolLayout& layout) {
  const bool is_whole =
      has_whole_rows<T>(in.query) && has_whole_rows<T>(in.key) && has_whole_rows<T>(in.value);
  const int shift = pool_shift(num_packs<T>(layout.head_dim), kPoolPacks<T>);
  return {layout, pool_kind(in), in.start, in.first, shift, is_whole};
}

// Row t of head h.
template <class T>
PAPERLAB_HD const T* token_row(const ConstTensorView& view, std::int64_t b, std::int64_t h,
                               std::int64_t t) {
  return static_cast<const T*>(view.data) + b * view.stride[0] + h * view.stride[1] +
         t * view.stride[2];
}
template <class T>
PAPERLAB_HD T* token_row(const TensorView& view, std::int64_t b, std::int64_t h, std::int64_t t) {
  return static_cast<T*>(view.data) + b * view.stride[0] + h * view.stride[1] + t * view.stride[2];
}

// The first element of a thread's pack p.
template <class T>
PAPERLAB_HD std::int64_t element_of(const PoolPlan& plan, int thread, int p) {
  return (plan.lane(thread) + std::int64_t{p} * plan.lanes()) * kPackSize<T>;
}

// A thread's part of a row, or zeros.
template <class T>
PAPERLAB_HD void load_part(const T* row, bool exists, const PoolPlan& plan, int thread,
                           Pack (&to)[kPoolPacks<T>]) {
  PAPERLAB_UNROLL
  for (int p = 0; p < kPoolPacks<T>; ++p) {
    to[p] = load_of_row(row, element_of<T>(plan, thread, p), exists ? plan.layout.head_dim : 0,
                        plan.is_whole);
  }
}
template <class T>
PAPERLAB_HD void store_part(T* row, const PoolPlan& plan, int thread,
                            const Pack (&from)[kPoolPacks<T>]) {
  PAPERLAB_UNROLL
  for (int p = 0; p < kPoolPacks<T>; ++p) {
    store_of_row(row, element_of<T>(plan, thread, p), plan.layout.head_dim, plan.is_whole, from[p]);
  }
}

template <class T>
PAPERLAB_HD void widen_part(const Pack (&from)[kPoolPacks<T>], NumberOf<T> (&to)[kLaneNumbers]) {
  PAPERLAB_UNROLL
  for (int p = 0; p < kPoolPacks<T>; ++p) {
    NumberOf<T> numbers[kPackSize<T>];
    unpack<T>(from[p], numbers);
    PAPERLAB_UNROLL
    for (int i = 0; i < kPackSize<T>; ++i) {
      to[p * kPackSize<T> + i] = numbers[i];
    }
  }
}
template <class T>
PAPERLAB_HD void load_numbers(const T* row, const PoolPlan& plan, int thread,
                              NumberOf<T> (&to)[kLaneNumbers]) {
  Pack packs[kPoolPacks<T>];
  load_part(row, true, plan, thread, packs);
  widen_part<T>(packs, to);
}
template <class T>
PAPERLAB_HD void store_numbers(T* row, const PoolPlan& plan, int thread,
                               const NumberOf<T> (&from)[kLaneNumbers]) {
  Pack packs[kPoolPacks<T>];
  PAPERLAB_UNROLL
  for (int p = 0; p < kPoolPacks<T>; ++p) {
    NumberOf<T> numbers[kPackSize<T>];
    PAPERLAB_UNROLL
    for (int i = 0; i < kPackSize<T>; ++i) {
      numbers[i] = from[p * kPackSize<T> + i];
    }
    packs[p] = to_pack<T>(numbers);
  }
  store_part(row, plan, thread, packs);
}

template <class Number>
PAPERLAB_HD Number dot_of_part(const Number (&a)[kLaneNumbers], const Number (&b)[kLaneNumbers]) {
  Number sum = 0;
  PAPERLAB_UNROLL
  for (int i = 0; i < kLaneNumbers; ++i) {
    sum = fused(a[i], b[i], sum);
  }
  return sum;
}

// Every thread combines its kCount numbers, get(thread, registers, i), with those of the other
// slots at its lane.
template <int kCount, class AnyTeam, class Get, class Op>
PAPERLAB_HD void combine_slots(AnyTeam& team, const PoolPlan& plan, Get get, Op op) {
  for (int apart = plan.lanes(); apart < kWarp; apart *= 2) {
    exchange_all<kCount>(team, apart, get, op);
  }
}

// ---------------------------------------------------------------------------------------------

// A row of the batch: where its groups begin, how many of them are complete, and the bits of what
// is written where there is none: zeros, or NaN if `start` is not one that group_pool accepts.
struct PoolRow {
  std::int64_t first;
  std::int64_t complete;
  std::uint32_t fill;
};
PAPERLAB_HD inline PoolRow pool_row(const PoolPlan& plan, std::int64_t b) {
  const PoolLayout& layout = plan.layout;
  const std::int64_t start = plan.start == nullptr ? 0 : plan.start[b];
  const bool is_in_range = start >= 0 && start <= layout.num_tokens;
  const std::int64_t first = is_in_range ? start + plan.first : layout.num_tokens;
  const std::int64_t complete = layout.complete(first);
  const bool has_queries = plan.kind != PoolKind::kAttention || complete == 0 ||
                           layout.query_of(first + layout.group - 1) >= 0;
  const bool is_valid = is_in_range && has_queries;
  return {first, is_valid ? complete : 0, is_valid ? 0U : 0xFFFFFFFFU};
}

template <class T>
PAPERLAB_HD void fill_token_row(T* row, const PoolPlan& plan, int thread, std::uint32_t fill) {
  Pack packs[kPoolPacks<T>];
  PAPERLAB_UNROLL
  for (int p = 0; p < kPoolPacks<T>; ++p) {
    packs[p] = {{fill, fill, fill, fill}};
  }
  store_part(row, plan, thread, packs);
}

// A pooled head of a group; number: [B, G, m, P/G].
struct PoolHead {
  PoolItem item;
  std::int64_t pooled;
  std::int64_t first_query;  // of the query heads whose mean is the evaluator
  std::int64_t num_queries;
  std::int64_t first_token;
  bool is_complete;
  std::uint32_t fill;
};
PAPERLAB_HD inline PoolHead pool_head(const PoolPlan& plan, std::int64_t number) {
  const PoolLayout& layout = plan.layout;
  const PoolItem item = item_at(number / layout.pooled_share, layout);
  const PoolRow row = pool_row(plan, item.batch);
  const std::int64_t pooled = item.key_head * layout.pooled_share + number % layout.pooled_share;
  const std::int64_t num_queries = layout.query_share / layout.pooled_share;
  return {item,
          pooled,
          pooled * num_queries,
          num_queries,
          row.first + item.group * layout.group,
          item.group < row.complete,
          row.fill};
}

// The mean of the queries of the group's last token.
template <class T>
PAPERLAB_HD void load_evaluator(const GroupPoolInputs& in, const PoolPlan& plan,
                                const PoolHead& head, int thread, NumberOf<T> (&to)[kLaneNumbers]) {
  const std::int64_t last = plan.layout.query_of(head.first_token + plan.layout.group - 1);
  load_numbers(token_row<T>(in.query, head.item.batch, head.first_query, last), plan, thread, to);
  if (head.num_queries == 1) {
    return;
  }
  for (std::int64_t h = 1; h < head.num_queries; ++h) {
    NumberOf<T> more[kLaneNumbers];
    load_numbers(token_row<T>(in.query, head.item.batch, head.first_query + h, last), plan, thread,
                 more);
    PAPERLAB_UNROLL
    for (int i = 0; i < kLaneNumbers; ++i) {
      to[i] += more[i];
    }
  }
  PAPERLAB_UNROLL
  for (int i = 0; i < kLaneNumbers; ++i) {
    to[i] /= static_cast<NumberOf<T>>(head.num_queries);
  }
}

// The group's rows that a thread has in a chunk of kSteps tokens; zeros behind the last token.
template <class T, int kSteps>
PAPERLAB_HD void load_tokens(const ConstTensorView& view, const PoolPlan& plan,
                             const PoolHead& head, int thread, std::int64_t chunk,
                             Pack (&to)[kSteps][kPoolPacks<T>]) {
  const T* rows = token_row<T>(view, head.item.batch, head.item.key_head, head.first_token);
  PAPERLAB_UNROLL
  for (int step = 0; step < kSteps; ++step) {
    const std::int64_t n = plan.token(thread, chunk, kSteps, step);
    load_part(rows + n * view.stride[2], n < plan.layout.group, plan, thread, to[step]);
  }
}

// The larger, and a NaN where there is one.
struct LargerOrNan {
  template <class Number>
  PAPERLAB_HD Number operator()(Number a, Number b) const {
    return a > b || a != a ? a : b;
  }
};

}  // namespace paperlab::kernels
