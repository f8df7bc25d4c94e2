#pragma once
// The backward half of block.h: gradients of logits in the place of logits, their sums over rows,
// and sums in float32 as gradients of 16 bits.

#include "kernels/linear_cross_entropy/block.h"

namespace paperlab::kernels {

constexpr int kColumnLanes = 32;                             // of add_columns: columns of a block,
constexpr int kColumnParts = kLogitsThreads / kColumnLanes;  // and rows that are added at once

struct GradientPass {
  LogitsPass chunk;
  void* gradients;        // of T, rows `stride` apart; the logits themselves if T is their type
  const void* grad_loss;  // of Sum, [N] without reduction
  const void* lse;        // of Sum, [N]
  const GradientScale* scale;
  std::int64_t vocab_size;
  Reduction reduction;
  double z_loss;
};

// factor e^(logit - lse) - [v = target] onehot.
template <class Sum>
struct RowFactors {
  Sum lse;
  Sum factor;
  Sum onehot;
  std::int64_t target;  // column of the chunk
};

template <class Sum>
PAPERLAB_HD RowFactors<Sum> row_factors(const GradientPass& pass, std::int64_t row) {
  const std::int64_t of_all = pass.chunk.rows.begin + row;
  const std::int64_t target = pass.chunk.target[of_all];
  if (target == pass.chunk.ignore_index) {
    return {Sum{0}, Sum{0}, Sum{0}, -1};
  }
  const bool is_inside = target >= 0 && target < pass.vocab_size;
  const double lse = static_cast<const Sum*>(pass.lse)[of_all];
  double grad = pass.reduction == Reduction::kNone
                    ? static_cast<double>(static_cast<const Sum*>(pass.grad_loss)[of_all])
                    : pass.scale->of_rows;
  grad = is_inside ? grad : static_cast<double>(NAN);
  return {static_cast<Sum>(lse), static_cast<Sum>(grad * (1.0 + 2.0 * pass.z_loss * lse)),
          static_cast<Sum>(grad), target - pass.chunk.columns.begin};
}

// Replaces the logits of one row by their gradients; zeros behind the last one, and in rows without
// a gradient, whatever their logits are.
template <class T, Team TeamType>
PAPERLAB_HD void to_gradients_block(TeamType& team, const GradientPass& pass, std::int64_t row) {
  using Sum = NumberOf<T>;
  constexpr int kSize = kOwnElements<T>;
  team.each([&](int thread, auto&) {
    const RowFactors<Sum> of = row_factors<Sum>(pass, row);
    T* to = static_cast<T*>(pass.gradients) + row * pass.chunk.stride;
    PAPERLAB_ROLLED
    for (std::int64_t at = std::int64_t{thread} * kSize; at < pass.chunk.columns.size();
         at += std::int64_t{kLogitsThreads} * kSize) {
      Sum x[kSize];
      load_logits<Sum, T>(pass.chunk, row, at, x);
      PAPERLAB_UNROLL
      for (int i = 0; i < kSize; ++i) {
        const bool is_zero = of.onehot == Sum{0} || at + i >= pass.chunk.columns.size();
        const Sum scaled = std::exp(x[i] - of.lse) * of.factor;
        x[i] = is_zero ? Sum{0} : at + i == of.target ? scaled - of.onehot : scaled;
      }
      if constexpr (kSize == 1) {
        to[at] = x[0];
      } else {
        store_pack(to + at, to_pack<T>(x));
      }
    }
  });
}

// ---------------------------------------------------------------------------------------------

struct ColumnsPass {
  const void* gradients;  // of T, [rows, columns]
  std::int64_t stride;
  std::int64_t rows;
  std::int64_t columns;
  bool is_first;  // the sums are written, else added to
};

// sums[column] of kColumnLanes columns. memory: shared, kLogitsThreads numbers.
template <class T, Team TeamType>
PAPERLAB_HD void add_columns_block(TeamType& team, NumberOf<T>* memory, const ColumnsPass& pass,
                                   std::int64_t block, NumberOf<T>* sums) {
  using Sum = NumberOf<T>;
  team.each([&](int thread, auto&) {
    const std::int64_t column = block * kColumnLanes + thread % kColumnLanes;
    Sum sum{0};
    if (column < pass.columns) {
      const T* from = static_cast<const T*>(pass.gradients) + column;
      for (std::int64_t row = thread / kColumnLanes; row < pass.rows; row += kColumnParts) {
        sum += to_number(from[row * pass.stride]);
      }
    }
    memory[thread] = sum;
  });
  team.each([&](int thread, auto&) {
    const std::int64_t column = block * kColumnLanes + thread;
    if (thread < kColumnLanes && column < pass.columns) {
      Sum sum = memory[thread];
      for (int part = 1; part < kColumnParts; ++part) {
        sum += memory[part * kColumnLanes + thread];
      }
      sums[column] = pass.is_first ? sum : sums[column] + sum;
    }
  });
}

struct NarrowPass {
  const float* from;
  std::int64_t count;
  const GradientScale* scale;
  void* to;       // of T
  bool is_whole;  // has_whole_packs<T> of both
};

// to = from scale->of_result, a pack of T a thread.
template <class T, Team TeamType>
PAPERLAB_HD void narrow_block(TeamType& team, const NarrowPass& pass, std::int64_t block) {
  constexpr int kSize = kPackSize<T>;
  team.each([&](int thread, auto&) {
    const std::int64_t at = (block * kLogitsThreads + thread) * kSize;
    if (at < pass.count) {
      const auto scale = static_cast<float>(pass.scale->of_result);
      float x[kSize];
      PAPERLAB_UNROLL
      for (int first = 0; first < kSize; first += kPackSize<float>) {
        float part[kPackSize<float>] = {};
        if (at + first < pass.count) {
          unpack<float>(load_of_row(pass.from, at + first, pass.count, pass.is_whole), part);
        }
        PAPERLAB_UNROLL
        for (int i = 0; i < kPackSize<float>; ++i) {
          x[first + i] = part[i] * scale;
        }
      }
      store_of_row(static_cast<T*>(pass.to), at, pass.count, pass.is_whole, to_pack<T>(x));
    }
  });
}

}  // namespace paperlab::kernels
