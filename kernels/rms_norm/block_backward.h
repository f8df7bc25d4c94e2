#pragma once
// The gradients of a normalization in blocks of GPU threads. A block has every num_parts-th turn of
// rows and one chunk of their columns, whose part of the weight's gradient stays in registers;
// parts are added up by sum_parts.h. A row of several chunks has its mean from a launch before.

#include <algorithm>

#include "kernels/common/cuda/sum_parts.h"
#include "kernels/rms_norm/block.h"

namespace paperlab::kernels {

constexpr int kRmsGradPacks = 2;    // loads of each tensor in flight
constexpr int kRmsGradParts = 264;  // at most: two blocks for each of 132 multiprocessors

struct RmsGradPlan {
  RowPlan rows;
  std::int64_t num_parts = 0;

  PAPERLAB_HD bool has_means() const { return rows.num_chunks > 1; }
};

// Host.
template <class T>
RmsGradPlan rms_grad_plan(const RmsNormBackward& problem) {
  const bool is_whole = has_whole_packs<T>(
      problem.width, {problem.grad_y, problem.grad_sum, problem.s, problem.weight, problem.grad_x},
      {});
  const RowPlan rows = row_plan<T>(problem.width, kRmsGradPacks, kRmsNormLanes, is_whole);
  return {rows, std::min<std::int64_t>(rows.team.num_turns(problem.num_rows), kRmsGradParts)};
}

// What the launches leave for each other: parts [P, W], then the means [N] of g n where a row has
// several chunks. In numbers.
PAPERLAB_HD inline std::int64_t means_at(const RmsNormBackward& problem, const RmsGradPlan& plan) {
  return plan.num_parts * problem.width;
}
PAPERLAB_HD inline std::int64_t scratch_size(const RmsNormBackward& problem,
                                             const RmsGradPlan& plan) {
  return means_at(problem, plan) + (plan.has_means() ? problem.num_rows : 0);
}

template <class T>
struct RmsGradRegisters {
  Pack grad[kRmsGradPacks];
  Pack s[kRmsGradPacks];
  Pack of_sum[kRmsGradPacks];
  Pack weight[kRmsGradPacks];
  NumberOf<T> r;
  NumberOf<T> dot;
  NumberOf<T> weight_sums[kRmsGradPacks][kPackSize<T>];
};

template <class T>
struct RmsGradMemory {
  NumberOf<T> warps[sum_memory(kRmsNormLanes, 1)];
  NumberOf<T> rows[kRmsGradPacks * kPackSize<T> * kRowThreads];
};

// A row's gradient of y, its s and its r.
template <class T>
PAPERLAB_HD void load_inputs(const RmsNormBackward& problem, const RowPlan& plan, int thread,
                             std::int64_t row, std::int64_t chunk, RmsGradRegisters<T>& own) {
  const RowSpan span = span_of(problem, row);
  load_packs<T>(problem.grad_y, span, plan, thread, chunk, own.grad);
  load_packs<T>(problem.s, span, plan, thread, chunk, own.s);
  own.r = span.width > 0 ? static_cast<const NumberOf<T>*>(problem.inverse_rms)[row] : 0;
}

// The chunk's share of sum(g n), g = dy weight and n = s r; the weight's gradient besides.
template <class T>
PAPERLAB_HD NumberOf<T> dot_of_chunk(RmsGradRegisters<T>& own) {
  NumberOf<T> sum = 0;
  PAPERLAB_UNROLL
  for (int k = 0; k < kRmsGradPacks; ++k) {
    NumberOf<T> grad[kPackSize<T>];
    NumberOf<T> s[kPackSize<T>];
    NumberOf<T> weight[kPackSize<T>];
    unpack<T>(own.grad[k], grad);
    unpack<T>(own.s[k], s);
    unpack<T>(own.weight[k], weight);
    NumberOf<T> part = 0;
    PAPERLAB_UNROLL
    for (int i = 0; i < kPackSize<T>; ++i) {
      const NumberOf<T> n = s[i] * own.r;
      part = fused(grad[i] * weight[i], n, part);
      own.weight_sums[k][i] = fused(grad[i], n, own.weight_sums[k][i]);
    }
    sum += part;
  }
  return sum;
}

// ds = r (g - n mean) + dsum.
template <class T>
PAPERLAB_HD void store_grad_x(const RmsNormBackward& problem, const RowPlan& plan, int thread,
                              std::int64_t row, std::int64_t chunk, NumberOf<T> mean,
                              const RmsGradRegisters<T>& own) {
  PAPERLAB_UNROLL
  for (int k = 0; k < kRmsGradPacks; ++k) {
    NumberOf<T> grad[kPackSize<T>];
    NumberOf<T> s[kPackSize<T>];
    NumberOf<T> other[kPackSize<T>];
    unpack<T>(own.grad[k], grad);
    unpack<T>(own.weight[k], other);
    unpack<T>(own.s[k], s);
    PAPERLAB_UNROLL
    for (int i = 0; i < kPackSize<T>; ++i) {
      grad[i] = (grad[i] * other[i] - s[i] * own.r * mean) * own.r;
    }
    if (problem.grad_sum != nullptr) {
      unpack<T>(own.of_sum[k], other);
      PAPERLAB_UNROLL
      for (int i = 0; i < kPackSize<T>; ++i) {
        grad[i] += other[i];
      }
    }
    store_pack_of<T>(problem.grad_x, span_of(problem, row), plan, thread, chunk, k,
                     to_pack<T>(grad));
  }
}

template <class T>
PAPERLAB_HD void clear_sums(RmsGradRegisters<T>& own) {
  PAPERLAB_UNROLL
  for (int n = 0; n < kRmsGradPacks * kPackSize<T>; ++n) {
    own.weight_sums[n / kPackSize<T>][n % kPackSize<T>] = 0;
  }
}

// Means of g n for the rows of one turn, where they have several chunks.
template <class T, class AnyTeam>
PAPERLAB_HD void rms_grad_means_block(AnyTeam& team, RmsGradMemory<T>& memory,
                                      const RmsNormBackward& problem, const RmsGradPlan& plan,
                                      std::int64_t turn, NumberOf<T>* means) {
  using Number = NumberOf<T>;
  const RowPlan& rows = plan.rows;
  team.each_alone([&](int thread, RmsGradRegisters<T>& own) {
    clear_sums(own);
    own.dot = 0;
    for (std::int64_t chunk = 0; chunk < rows.num_chunks; ++chunk) {
      load_packs<T>(problem.weight, {0, problem.width}, rows, thread, chunk, own.weight);
      load_inputs(problem, rows, thread, rows.row(turn, thread), chunk, own);
      own.dot += dot_of_chunk(own);
    }
  });
  sum_threads<1>(team, rows.team.threads(), rows.team.lanes(), memory.warps,
                 [](int, RmsGradRegisters<T>& own, int) -> Number& { return own.dot; });
  team.each_alone([&](int thread, RmsGradRegisters<T>& own) {
    const std::int64_t row = rows.row(turn, thread);
    if (row < problem.num_rows && rows.team.lane(thread) == 0) {
      means[row] = own.dot / static_cast<Number>(problem.width);
    }
  });
}

// The block's part of the weight's gradient: its rows at once are added in order.
template <class T, class AnyTeam>
PAPERLAB_HD void store_part(AnyTeam& team, RmsGradMemory<T>& memory, const RowTeam& rows,
                            std::int64_t chunk, std::int64_t width, NumberOf<T>* part) {
  const int threads = rows.threads();
  if (rows.rows > 1) {
    team.each([&](int thread, RmsGradRegisters<T>& own) {
      PAPERLAB_UNROLL
      for (int n = 0; n < kRmsGradPacks * kPackSize<T>; ++n) {
        memory.rows[n * threads + thread] = own.weight_sums[n / kPackSize<T>][n % kPackSize<T>];
      }
    });
  }
  team.each_alone([&](int thread, RmsGradRegisters<T>& own) {
    if (thread >= rows.lanes()) {
      return;
    }
    PAPERLAB_UNROLL
    for (int n = 0; n < kRmsGradPacks * kPackSize<T>; ++n) {
      NumberOf<T> sum = own.weight_sums[n / kPackSize<T>][n % kPackSize<T>];
      for (int row = 1; row < rows.rows; ++row) {
        sum += memory.rows[n * threads + row * rows.lanes() + thread];
      }
      const std::int64_t column =
          rows.pack(thread, chunk, n / kPackSize<T>) * kPackSize<T> + n % kPackSize<T>;
      if (column < width) {
        part[column] = sum;
      }
    }
  });
}

// Block number part num_chunks + chunk: grad_x of its rows and columns, and its part of the
// weight's gradient.
template <class T, class AnyTeam>
PAPERLAB_HD void rms_grad_block(AnyTeam& team, RmsGradMemory<T>& memory,
                                const RmsNormBackward& problem, const RmsGradPlan& plan,
                                std::int64_t block, NumberOf<T>* scratch) {
  using Number = NumberOf<T>;
  const RowPlan& rows = plan.rows;
  const std::int64_t part = block / rows.num_chunks;
  const std::int64_t chunk = block % rows.num_chunks;
  const Number* means = plan.has_means() ? scratch + means_at(problem, plan) : nullptr;
  team.each_alone([&](int thread, RmsGradRegisters<T>& own) {
    clear_sums(own);
    load_packs<T>(problem.weight, {0, problem.width}, rows, thread, chunk, own.weight);
  });
  for (std::int64_t turn = part; turn < rows.team.num_turns(problem.num_rows);
       turn += plan.num_parts) {
    team.each_alone([&](int thread, RmsGradRegisters<T>& own) {
      const std::int64_t row = rows.row(turn, thread);
      load_inputs(problem, rows, thread, row, chunk, own);
      if (problem.grad_sum != nullptr) {
        load_packs<T>(problem.grad_sum, span_of(problem, row), rows, thread, chunk, own.of_sum);
      }
      own.dot = dot_of_chunk(own);
    });
    if (means == nullptr) {
      sum_threads<1>(team, rows.team.threads(), rows.team.lanes(), memory.warps,
                     [](int, RmsGradRegisters<T>& own, int) -> Number& { return own.dot; });
    }
    team.each_alone([&](int thread, RmsGradRegisters<T>& own) {
      const std::int64_t row = rows.row(turn, thread);
      if (row < problem.num_rows) {
        const Number mean =
            means != nullptr ? means[row] : own.dot / static_cast<Number>(problem.width);
        store_grad_x(problem, rows, thread, row, chunk, mean, own);
      }
    });
  }
  store_part(team, memory, rows.team, chunk, problem.width, scratch + part * problem.width);
}

}  // namespace paperlab::kernels
