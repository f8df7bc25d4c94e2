#pragma once
// What one block of GPU threads does (host-device, over a team). A thread has one pack of the
// tables and turns it in up to four heads at a time, so that it has eight loads in flight and reads
// the tables once; its neighbours have the next packs of the same head, then those of other heads.

#include <algorithm>

#include "kernels/common/cuda/elements.h"
#include "kernels/rope/rope.h"

namespace paperlab::kernels {

constexpr int kRopeThreads = 256;
constexpr int kRopeHeads = 4;  // at a time

// Arithmetic of shapes. The items of a head: packs of pairs, then packs of lanes that are copied.
struct RopePlan {
  std::int64_t num_positions = 0;  // B T
  std::int64_t pair_packs = 0;
  std::int64_t items = 0;
  int lanes = 1;      // threads of a head
  int slots = 1;      // heads at once
  int positions = 1;  // at once
  bool is_whole = false;

  PAPERLAB_HD constexpr std::int64_t num_blocks() const {
    return (num_positions + positions - 1) / positions;
  }
};

constexpr RopePlan rope_plan(std::int64_t num_positions, std::int64_t heads,
                             std::int64_t pair_packs, std::int64_t copy_packs, bool is_whole) {
  RopePlan plan;
  plan.num_positions = num_positions;
  plan.pair_packs = pair_packs;
  plan.items = pair_packs + copy_packs;
  plan.lanes = static_cast<int>(std::clamp<std::int64_t>(plan.items, 1, kRopeThreads));
  plan.slots = static_cast<int>(std::clamp<std::int64_t>((heads + kRopeHeads - 1) / kRopeHeads, 1,
                                                         kRopeThreads / plan.lanes));
  plan.positions = kRopeThreads / (plan.lanes * plan.slots);
  plan.is_whole = is_whole;
  return plan;
}

// Host.
template <class T>
RopePlan rope_plan(const Rope& problem, const void* out) {
  const auto& [batch, length, heads, width] = problem.x.size;
  bool is_whole = problem.half % kPackSize<T> == 0 &&
                  has_whole_packs<T>(width, {problem.x.data, out, problem.cos, problem.sin}, {});
  for (int i = 0; i < 3; ++i) {
    is_whole = is_whole && (problem.x.size[i] <= 1 || problem.x.stride[i] % kPackSize<T> == 0);
  }
  return rope_plan(batch * length, heads, num_packs<T>(problem.half),
                   num_packs<T>(width - 2 * problem.half), is_whole);
}

// The same `count` numbers of a table as a pack of T has elements, times `sign`.
template <class T>
PAPERLAB_HD void load_table(const void* table, std::int64_t at, std::int64_t count, bool is_whole,
                            NumberOf<T> sign, NumberOf<T> (&to)[kPackSize<T>]) {
  using Number = NumberOf<T>;
  constexpr int kNumbers = kPackSize<Number>;
  const Number* from = static_cast<const Number*>(table) + at;
  PAPERLAB_UNROLL
  for (int n = 0; n < kPackSize<T> / kNumbers; ++n) {
    Number numbers[kNumbers];
    const std::int64_t first = std::int64_t{n} * kNumbers;
    unpack<Number>(is_whole ? load_pack(from + first) : load_some(from + first, count - first),
                   numbers);
    PAPERLAB_UNROLL
    for (int i = 0; i < kNumbers; ++i) {
      to[n * kNumbers + i] = numbers[i] * sign;
    }
  }
}

// Where a thread reads and writes: head 0 at its position.
template <class T>
struct RopePlace {
  const T* x;
  T* out;
  std::int64_t table;
};

// The pair that begins at lane `at` in up to kRopeHeads heads from `first` on, plan.slots apart.
template <class T>
PAPERLAB_HD void rotate_heads(const Rope& problem, const RopePlan& plan, const RopePlace<T>& place,
                              std::int64_t first, std::int64_t at,
                              const NumberOf<T> (&cos)[kPackSize<T>],
                              const NumberOf<T> (&sin)[kPackSize<T>]) {
  const std::int64_t half = problem.half;
  Pack low[kRopeHeads];
  Pack high[kRopeHeads];
  PAPERLAB_UNROLL
  for (int n = 0; n < kRopeHeads; ++n) {
    const std::int64_t h = first + std::int64_t{n} * plan.slots;
    const std::int64_t end = h < problem.x.size[2] ? half : 0;
    const T* from = place.x + h * problem.x.stride[2];
    low[n] = load_of_row(from, at, end, plan.is_whole);
    high[n] = load_of_row(from + half, at, end, plan.is_whole);
  }
  PAPERLAB_UNROLL
  for (int n = 0; n < kRopeHeads; ++n) {
    const std::int64_t h = first + std::int64_t{n} * plan.slots;
    const std::int64_t end = h < problem.x.size[2] ? half : 0;
    NumberOf<T> a[kPackSize<T>];
    NumberOf<T> b[kPackSize<T>];
    unpack<T>(low[n], a);
    unpack<T>(high[n], b);
    PAPERLAB_UNROLL
    for (int i = 0; i < kPackSize<T>; ++i) {
      const NumberOf<T> x = a[i];
      a[i] = fused(x, cos[i], -(b[i] * sin[i]));
      b[i] = fused(b[i], cos[i], x * sin[i]);
    }
    T* to = place.out + h * problem.x.size[3];
    store_of_row(to, at, end, plan.is_whole, to_pack<T>(a));
    store_of_row(to + half, at, end, plan.is_whole, to_pack<T>(b));
  }
}

// Lanes 2 half + at .. of the same heads.
template <class T>
PAPERLAB_HD void copy_heads(const Rope& problem, const RopePlan& plan, const RopePlace<T>& place,
                            std::int64_t first, std::int64_t at) {
  const std::int64_t before = 2 * problem.half;
  const std::int64_t width = problem.x.size[3];
  for (int n = 0; n < kRopeHeads; ++n) {
    const std::int64_t h = first + std::int64_t{n} * plan.slots;
    const std::int64_t end = h < problem.x.size[2] ? width - before : 0;
    const Pack pack =
        load_of_row(place.x + h * problem.x.stride[2] + before, at, end, plan.is_whole);
    store_of_row(place.out + h * width + before, at, end, plan.is_whole, pack);
  }
}

template <class T>
PAPERLAB_HD RopePlace<T> rope_place(const Rope& problem, std::int64_t position, void* out) {
  const std::int64_t b = position / problem.x.size[1];
  const std::int64_t t = position % problem.x.size[1];
  return {static_cast<const T*>(problem.x.data) + b * problem.x.stride[0] + t * problem.x.stride[1],
          static_cast<T*>(out) + position * problem.x.size[2] * problem.x.size[3],
          (problem.table_batch == 1 ? t : position) * problem.half};
}

// Positions block plan.positions .. of [B, T].
template <class T, class AnyTeam>
PAPERLAB_HD void rope_block(AnyTeam& team, const Rope& problem, const RopePlan& plan,
                            std::int64_t block, void* out) {
  team.each_alone([&](int thread, auto&) {
    const int slot = thread / plan.lanes;  // of a head at a position
    const std::int64_t position = block * plan.positions + slot / plan.slots;
    if (slot >= plan.slots * plan.positions || position >= plan.num_positions) {
      return;
    }
    const RopePlace<T> place = rope_place<T>(problem, position, out);
    const std::int64_t apart = std::int64_t{kRopeHeads} * plan.slots;
    for (std::int64_t item = thread % plan.lanes; item < plan.items; item += plan.lanes) {
      if (item >= plan.pair_packs) {
        const std::int64_t at = (item - plan.pair_packs) * kPackSize<T>;
        for (std::int64_t h = slot % plan.slots; h < problem.x.size[2]; h += apart) {
          copy_heads(problem, plan, place, h, at);
        }
        continue;
      }
      const std::int64_t at = item * kPackSize<T>;
      const NumberOf<T> sign = problem.inverse ? -1 : 1;
      NumberOf<T> cos[kPackSize<T>];
      NumberOf<T> sin[kPackSize<T>];
      load_table<T>(problem.cos, place.table + at, problem.half - at, plan.is_whole, 1, cos);
      load_table<T>(problem.sin, place.table + at, problem.half - at, plan.is_whole, sign, sin);
      for (std::int64_t h = slot % plan.slots; h < problem.x.size[2]; h += apart) {
        rotate_heads(problem, plan, place, h, at, cos, sin);
      }
    }
  });
}

}  // namespace paperlab::kernels
