#pragma once
// What one block of GPU threads does (host-device, over a team). A row's packs stay in the
// registers of its lanes between the sum of squares and the result; a row that is too wide for them
// is read twice.

#include <cmath>

#include "kernels/common/cuda/reduce.h"
#include "kernels/common/cuda/row_packs.h"
#include "kernels/rms_norm/rms_norm.h"

namespace paperlab::kernels {

constexpr int kRmsNormLanes = 512;  // most threads of a row
constexpr int kRmsNormPacks = 4;    // 16-byte loads in flight, as many again with a residual

// Host.
template <class T>
RowPlan rms_norm_plan(const RmsNormForward& problem) {
  return row_plan<T>(
      problem.width, kRmsNormPacks, kRmsNormLanes,
      has_whole_packs<T>(problem.width,
                         {problem.x, problem.residual, problem.weight, problem.y, problem.sum},
                         {}));
}

template <class T>
struct RmsNormRegisters {
  Pack s[kRmsNormPacks];
  NumberOf<T> squares;
};

template <class T>
struct RmsNormMemory {
  NumberOf<T> warps[sum_memory(kRmsNormLanes, 1)];
};

template <class Problem>
PAPERLAB_HD RowSpan span_of(const Problem& problem, std::int64_t row) {
  return row_span(row, problem.num_rows, problem.width, problem.width);
}

template <class T>
PAPERLAB_HD Pack sum_of_packs(const Pack& a, const Pack& b) {
  NumberOf<T> left[kPackSize<T>];
  NumberOf<T> right[kPackSize<T>];
  unpack<T>(a, left);
  unpack<T>(b, right);
  PAPERLAB_UNROLL
  for (int i = 0; i < kPackSize<T>; ++i) {
    left[i] += right[i];
  }
  return to_pack<T>(left);
}

// A thread's packs of a chunk of x, or of the sum, which is stored.
template <class T>
PAPERLAB_HD void load_sums(const RmsNormForward& problem, const RowPlan& plan, int thread,
                           std::int64_t row, std::int64_t chunk, Pack (&s)[kRmsNormPacks]) {
  const RowSpan span = span_of(problem, row);
  load_packs<T>(problem.x, span, plan, thread, chunk, s);
  if (problem.residual != nullptr) {
    Pack residual[kRmsNormPacks];
    load_packs<T>(problem.residual, span, plan, thread, chunk, residual);
    PAPERLAB_UNROLL
    for (int k = 0; k < kRmsNormPacks; ++k) {
      s[k] = sum_of_packs<T>(s[k], residual[k]);
      store_pack_of<T>(problem.sum, span, plan, thread, chunk, k, s[k]);
    }
  }
}

template <class T>
PAPERLAB_HD NumberOf<T> squares_of(const Pack (&s)[kRmsNormPacks]) {
  NumberOf<T> sum = 0;
  PAPERLAB_UNROLL
  for (int k = 0; k < kRmsNormPacks; ++k) {
    NumberOf<T> x[kPackSize<T>];
    unpack<T>(s[k], x);
    NumberOf<T> part = 0;
    PAPERLAB_UNROLL
    for (int i = 0; i < kPackSize<T>; ++i) {
      part = fused(x[i], x[i], part);
    }
    sum += part;
  }
  return sum;
}

// y = s r weight of a chunk.
template <class T>
PAPERLAB_HD void store_normalized(const RmsNormForward& problem, const RowPlan& plan, int thread,
                                  std::int64_t row, std::int64_t chunk, NumberOf<T> r,
                                  const Pack (&s)[kRmsNormPacks]) {
  Pack weight[kRmsNormPacks];
  load_packs<T>(problem.weight, {0, problem.width}, plan, thread, chunk, weight);
  PAPERLAB_UNROLL
  for (int k = 0; k < kRmsNormPacks; ++k) {
    NumberOf<T> x[kPackSize<T>];
    NumberOf<T> w[kPackSize<T>];
    unpack<T>(s[k], x);
    unpack<T>(weight[k], w);
    PAPERLAB_UNROLL
    for (int i = 0; i < kPackSize<T>; ++i) {
      x[i] = x[i] * r * w[i];
    }
    store_pack_of<T>(problem.y, span_of(problem, row), plan, thread, chunk, k, to_pack<T>(x));
  }
}

// y, sum and inverse_rms of the rows of one turn.
template <class T, class AnyTeam>
PAPERLAB_HD void rms_norm_block(AnyTeam& team, RmsNormMemory<T>& memory,
                                const RmsNormForward& problem, const RowPlan& plan,
                                std::int64_t turn) {
  using Number = NumberOf<T>;
  team.each_alone([&](int thread, RmsNormRegisters<T>& own) {
    own.squares = 0;
    for (std::int64_t chunk = 0; chunk < plan.num_chunks; ++chunk) {
      load_sums<T>(problem, plan, thread, plan.row(turn, thread), chunk, own.s);
      own.squares += squares_of<T>(own.s);
    }
  });
  sum_threads<1>(team, plan.team.threads(), plan.team.lanes(), memory.warps,
                 [](int, RmsNormRegisters<T>& own, int) -> Number& { return own.squares; });
  team.each_alone([&](int thread, RmsNormRegisters<T>& own) {
    const std::int64_t row = plan.row(turn, thread);
    const Number mean = own.squares / static_cast<Number>(problem.width);
    const Number r = Number{1} / std::sqrt(mean + static_cast<Number>(problem.eps));
    if (row < problem.num_rows && plan.team.lane(thread) == 0) {
      static_cast<Number*>(problem.inverse_rms)[row] = r;
    }
    const void* from = problem.residual == nullptr ? problem.x : problem.sum;
    for (std::int64_t chunk = 0; chunk < plan.num_chunks; ++chunk) {
      if (plan.num_chunks > 1) {
        load_packs<T>(from, span_of(problem, row), plan, thread, chunk, own.s);
      }
      store_normalized<T>(problem, plan, thread, row, chunk, r, own.s);
    }
  });
}

}  // namespace paperlab::kernels
