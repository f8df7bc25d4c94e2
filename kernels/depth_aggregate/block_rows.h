#pragma once
// What the generator needs beside its products, row by row or column by column of a matrix, on one
// block of GPU threads (host-device). Sums are in an order that is a function of shapes alone.

#include "kernels/common/cuda/reduce.h"
#include "kernels/depth_aggregate/block.h"
#include "kernels/depth_aggregate/block_operand.h"

namespace paperlab::kernels::depth {

constexpr int kRowThreads = 256;
constexpr int kRowsOfBlock = kRowThreads / kWarp;  // a warp a row
constexpr int kPacksAtOnce = 4;

// newest = base + delta, if there is a base, and 1 / rms of its rows or of those of x.
struct NormTask {
  const void* base;
  const void* delta;
  void* newest;
  const void* x;
  void* inverse_rms;  // [N], statistics' type; absent: not wanted
  std::int64_t num_tokens;
  std::int64_t width;
  double eps;
  bool is_whole;
};

template <class T>
struct NormRegisters {
  NumberOf<T> squares;
};

// The elements that a lane has of a row, kPacksAtOnce packs at a time, from column `first` on.
template <class T>
PAPERLAB_HD void norm_packs(const NormTask& task, std::int64_t row, std::int64_t first,
                            NumberOf<T>& squares) {
  Pack packs[kPacksAtOnce];
  Pack deltas[kPacksAtOnce];
  const bool is_sum = task.base != nullptr;
  const auto at_of = [&](int i) { return first + std::int64_t{i} * kWarp * kPackSize<T>; };
  const auto left_of = [&](int i) {
    return static_cast<int>(smaller(task.width - at_of(i), kPackSize<T>));
  };
  PAPERLAB_UNROLL
  for (int i = 0; i < kPacksAtOnce; ++i) {
    packs[i] = deltas[i] = zero_pack();
    if (left_of(i) > 0) {
      const std::int64_t at = row * task.width + at_of(i);
      packs[i] = load_at<T>(is_sum ? task.base : task.x, at, left_of(i), task.is_whole);
      if (is_sum) {
        deltas[i] = load_at<T>(task.delta, at, left_of(i), task.is_whole);
      }
    }
  }
  PAPERLAB_UNROLL
  for (int i = 0; i < kPacksAtOnce; ++i) {
    NumberOf<T> x[kPackSize<T>];
    NumberOf<T> delta[kPackSize<T>];
    unpack<T>(packs[i], x);
    if (is_sum) {
      unpack<T>(deltas[i], delta);
      PAPERLAB_UNROLL
      for (int e = 0; e < kPackSize<T>; ++e) {
        x[e] += delta[e];
      }
      const Pack sum = to_pack<T>(x);
      if (left_of(i) > 0) {
        store_at<T>(task.newest, row * task.width + at_of(i), left_of(i), task.is_whole, sum);
      }
      unpack<T>(sum, x);  // as it was rounded
    }
    PAPERLAB_UNROLL
    for (int e = 0; e < kPackSize<T>; ++e) {
      squares = fused(x[e], x[e], squares);
    }
  }
}

// Block `block` of num_blocks(N, kRowsOfBlock).
template <class T, Team Block>
PAPERLAB_HD void norm_block(Block& team, const NormTask& task, std::int64_t block) {
  using Number = NumberOf<T>;
  using Registers = NormRegisters<T>;
  const auto row_of = [&](int thread) { return block * kRowsOfBlock + thread / kWarp; };
  team.each_alone([&](int thread, Registers& own) {
    own.squares = 0;
    if (row_of(thread) < task.num_tokens) {
      for (std::int64_t at = std::int64_t{thread % kWarp} * kPackSize<T>; at < task.width;
           at += std::int64_t{kPacksAtOnce} * kWarp * kPackSize<T>) {
        norm_packs<T>(task, row_of(thread), at, own.squares);
      }
    }
  });
  sum_neighbours(team, kWarp, [](int, Registers& own) -> Number& { return own.squares; });
  team.each_alone([&](int thread, Registers& own) {
    if (thread % kWarp == 0 && row_of(thread) < task.num_tokens && task.inverse_rms != nullptr) {
      const Number mean = own.squares / static_cast<Number>(task.width);
      static_cast<Number*>(task.inverse_rms)[row_of(thread)] =
          Number{1} / std::sqrt(mean + static_cast<Number>(task.eps));
    }
  });
}

// ---------------------------------------------------------------------------------------------

// of_x[n] = r[n] / D sum over k of grad_z[n, k] z[n, k]: what the norm takes from x's gradient, by
// element of x. All of statistics' type.
struct DotTask {
  const void* grad_z;
  const void* z;
  const void* inverse_rms;
  void* of_x;
  std::int64_t num_tokens;
  std::int64_t hidden_size;
  std::int64_t width;
};

template <class Number>
struct DotRegisters {
  Number sum;
};

// Block `block` of num_blocks(N, kRowsOfBlock).
template <class Number, Team Block>
PAPERLAB_HD void dot_block(Block& team, const DotTask& task, std::int64_t block) {
  using Registers = DotRegisters<Number>;
  const auto row_of = [&](int thread) { return block * kRowsOfBlock + thread / kWarp; };
  team.each_alone([&](int thread, Registers& own) {
    own.sum = 0;
    const std::int64_t first = row_of(thread) * task.hidden_size;
    for (std::int64_t k = thread % kWarp; k < task.hidden_size && row_of(thread) < task.num_tokens;
         k += kWarp) {
      own.sum = fused(static_cast<const Number*>(task.grad_z)[first + k],
                      static_cast<const Number*>(task.z)[first + k], own.sum);
    }
  });
  sum_neighbours(team, kWarp, [](int, Registers& own) -> Number& { return own.sum; });
  team.each_alone([&](int thread, Registers& own) {
    if (thread % kWarp == 0 && row_of(thread) < task.num_tokens) {
      static_cast<Number*>(task.of_x)[row_of(thread)] =
          own.sum * static_cast<const Number*>(task.inverse_rms)[row_of(thread)] /
          static_cast<Number>(task.width);
    }
  });
}

// ---------------------------------------------------------------------------------------------

constexpr int kColumnsOfBlock = 32;
constexpr int kRowParts = kRowThreads / kColumnsOfBlock;

// Sums over the rows of a matrix, or over parts of them.
struct ColumnTask {
  const void* from;  // [rows, columns], statistics' type
  std::int64_t rows;
  std::int64_t columns;
  std::int64_t rows_of_part;
  // Part p of column i: [p columns + i / group * group_stride + i % group].
  void* to;
  DType to_dtype;
  std::int64_t group;
  std::int64_t group_stride;

  PAPERLAB_HD std::int64_t num_parts() const {
    return rows > 0 ? num_blocks(rows, rows_of_part) : 1;
  }
  PAPERLAB_HD std::int64_t num_tiles() const { return num_blocks(columns, kColumnsOfBlock); }
};

template <class Number>
struct ColumnMemory {
  Number sums[kRowParts][kColumnsOfBlock];
};

// Block `block` of num_parts() num_tiles(): a part's rows p, p + kRowParts, .., then the kRowParts
// sums in order.
template <class Number, Team Block>
PAPERLAB_HD void column_block(Block& team, ColumnMemory<Number>& memory, const ColumnTask& task,
                              std::int64_t block) {
  const std::int64_t part = block / task.num_tiles();
  const TokenRange rows = block_at(task.rows, task.rows_of_part, part);
  const std::int64_t first = block % task.num_tiles() * kColumnsOfBlock;
  team.each([&](int thread, auto& /*own*/) {
    const std::int64_t column = first + thread % kColumnsOfBlock;
    Number sum = 0;
    for (std::int64_t row = rows.begin + thread / kColumnsOfBlock;
         row < rows.end && column < task.columns; row += kRowParts) {
      sum += static_cast<const Number*>(task.from)[row * task.columns + column];
    }
    memory.sums[thread / kColumnsOfBlock][thread % kColumnsOfBlock] = sum;
  });
  team.each_alone([&](int thread, auto& /*own*/) {
    const std::int64_t column = first + thread;
    if (thread < kColumnsOfBlock && column < task.columns) {
      Number sum = 0;
      for (int i = 0; i < kRowParts; ++i) {
        sum += memory.sums[i][thread];
      }
      store_number_at(
          task.to, task.to_dtype,
          part * task.columns + column / task.group * task.group_stride + column % task.group, sum);
    }
  });
}

}  // namespace paperlab::kernels::depth
