#pragma once
// The backward pass in bfloat16 and float16 by tensor cores, in two kinds of blocks of four warps
// that recompute the weights from the log-sum-exp: KeyShape goes through tiles of rows for 64 keys
// and makes the gradients of key and value, QueryShape through keys for 64 rows and makes that of
// the query. A warp owns 16 keys or rows: its weights are at once the left matrix of the next
// product. Every sum has one owner and one order.

#include "kernels/attention/block_backward_task.h"
#include "kernels/attention/block_forward.h"

namespace paperlab::kernels {

constexpr int kOwnRows = 64;  // keys or rows of a block: 16 a warp

// What a row brings along.
struct RowStatistics {
  float lse;  // in units of log 2; +infinity: the row's weights are 0
  float delta;
  RowLimits limits;
};

PAPERLAB_HD inline RowStatistics row_statistics(const BackwardLaunch& launch, const RowTile& tile,
                                                int row) {
  const AttentionLaunch& of = launch.attention;
  const std::int64_t number = tile.first + smaller(row, tile.count - 1);
  const std::int64_t at = statistic_at(of, tile.place, number);
  const float lse = static_cast<const float*>(launch.forward.lse)[at];
  const bool is_used = row < tile.count && lse != -INFINITY;
  return {is_used ? lse * kLog2E : INFINITY, static_cast<const float*>(launch.delta)[at],
          limits_of(keys_of_row(of, tile.place.batch, number))};
}

// Whether all rows from the one to the other see all of the block.
PAPERLAB_HD constexpr bool is_seen_by_rows(const KeyBlock& block, const RowLimits& first,
                                           const RowLimits& last) {
  return block.is_prefix ? block.end <= first.prefix_end
                         : block.begin >= last.begin && block.end <= first.end;
}

// ---------------------------------------------------------------------------------------------

// kRows: of a step. kHasKey, kHasValue: which of the two gradients.
template <class E, int kWidth_, int kRows_, bool kHasKey_, bool kHasValue_>
struct KeyShape {
  using Element = E;
  static constexpr int kWidth = kWidth_;
  static constexpr int kRows = kRows_;
  static constexpr bool kHasKey = kHasKey_;
  static constexpr bool kHasValue = kHasValue_;
};

// One block's way through the rows: the same tiles of every unit that shares the keys. In shared
// memory, as ForwardLoop.
struct KeyLoop {
  KeyTask task;
  KeyBlock seen;
  TileRange tiles;
  KeyStream<Bits> keys;
  int count;    // of steps
  float scale;  // of the logits, in units of log 2
};

PAPERLAB_HD inline KeyLoop key_loop(const AttentionLaunch& of, const KeyTask& task, int tile_rows) {
  const UnitPlace place{task.batch, task.first_unit};
  const KeyBlock seen = seen_by_unit(of, task);
  const TileRange tiles = tiles_of(of, place, seen, tile_rows);
  const bool is_empty = seen.begin >= seen.end || tiles.first >= tiles.last;
  return {task,
          seen,
          tiles,
          key_stream<Bits>(of, place, task.block.is_prefix),
          is_empty ? 0 : static_cast<int>(task.num_units * (tiles.last - tiles.first)),
          static_cast<float>(of.in.scale * double{kLog2E})};
}

PAPERLAB_HD inline RowTile tile_of_step(const AttentionLaunch& of, const KeyLoop& loop, int step,
                                        int tile_rows) {
  const auto tiles = static_cast<int>(loop.tiles.last - loop.tiles.first);
  return tile_number(of, {loop.task.batch, loop.task.first_unit + step / tiles},
                     loop.tiles.first + step % tiles, tile_rows);
}

template <class E, int kWidth>
using BothShape = KeyShape<E, kWidth, 64, true, true>;

template <class S>
struct alignas(16) KeyMemory {
  Bits key[kOwnRows * S::kWidth];    // then the results
  Bits value[kOwnRows * S::kWidth];  // then the results
  Bits query[2][S::kRows * S::kWidth];
  Bits grad[S::kRows * S::kWidth];
  RowStatistics rows[2][S::kRows];
  KeyLoop loop;
};

template <class S, class Lanes>
struct KeyRegisters {
  Sums<Lanes> weights[1][S::kRows / 8];  // [16 keys, rows]
  Sums<Lanes> key[1][S::kHasKey ? S::kWidth / 8 : 1];
  Sums<Lanes> value[1][S::kHasValue ? S::kWidth / 8 : 1];
};

// Queries and statistics of a step; products may follow.
template <class S, class Lanes>
PAPERLAB_HD void load_query_step(Lanes& warp, int number, KeyMemory<S>& memory,
                                 const BackwardLaunch& launch, int step) {
  const AttentionLaunch& of = launch.attention;
  const RowTile tile = tile_of_step(of, memory.loop, step, S::kRows);
  const bool is_other = memory.loop.task.block.is_prefix && of.in.prefix_query.data != nullptr;
  load_row_tile<S::kWidth, S::kRows>(warp, number, memory.query[step % 2], of, tile,
                                     is_other ? of.in.prefix_query : of.in.query);
  warp.lanes([&](int lane) {
    const int row = number * kWarp + lane;
    if (row < S::kRows) {
      memory.rows[step % 2][row] = row_statistics(launch, tile, row);
    }
  });
  warp.converge();
}

// `task()` is the block's work.
template <class S, class T, class Task>
PAPERLAB_HD void begin_keys(T& team, KeyMemory<S>& memory, const BackwardLaunch& launch,
                            Task task) {
  using Lanes = typename T::Lanes;
  const AttentionLaunch& of = launch.attention;
  KeyLoop& loop = memory.loop;
  team.each_warp([&](Lanes& warp, int number, typename T::Registers&) {
    warp.lanes([&](int lane) {
      if (number == 0 && lane == 0) {
        loop = key_loop(of, task(), S::kRows);
      }
    });
  });
  team.each_warp([&](Lanes& warp, int number, typename T::Registers& own) {
    clear(warp, own.key);
    clear(warp, own.value);
    if (loop.count > 0) {
      const KeyStream<Bits>& keys = loop.keys;
      load_key_tile<S::kWidth, kOwnRows>(warp, number, memory.key, keys.key, keys.key_stride, of,
                                         loop.task.block, loop.seen);
      load_key_tile<S::kWidth, kOwnRows>(warp, number, memory.value, keys.value, keys.value_stride,
                                         of, loop.task.block, loop.seen);
      load_query_step<S>(warp, number, memory, launch, 0);
    }
    warp.wait();
  });
}

// Scores to weights: 2^(scale s - lse) where the row (a column here) sees the key.
template <class S, class Lanes>
PAPERLAB_HD void weigh_keys(const Lanes& warp, int number, const RowStatistics (&rows)[S::kRows],
                            const KeyBlock& block, float scale, KeyRegisters<S, Lanes>& own) {
  const bool is_seen = is_seen_by_rows(block, rows[0].limits, rows[S::kRows - 1].limits);
  warp.lanes([&](int lane) {
    PAPERLAB_UNROLL
    for (int n = 0; n < S::kRows / 8; ++n) {
      PAPERLAB_UNROLL
      for (int i = 0; i < 4; ++i) {
        const MatrixPlace at = place_in_c(lane, i);
        const RowStatistics& row = rows[8 * n + at.column];
        const int key = static_cast<int>(block.begin) + 16 * number + at.row;
        float& weight = own.weights[0][n].of(lane)[i];
        const bool is_used = is_seen || row.limits.sees(block.is_prefix, key);
        weight = is_used ? power_of_two(fmaf(weight, scale, -row.lse)) : 0.0F;
      }
    }
  });
}

// Weights to gradients of the logits: p (dp - delta).
template <class S, class Lanes>
PAPERLAB_HD void differentiate_keys(const Lanes& warp, const RowStatistics (&rows)[S::kRows],
                                    const Sums<Lanes> (&products)[1][S::kRows / 8],
                                    KeyRegisters<S, Lanes>& own) {
  warp.lanes([&](int lane) {
    PAPERLAB_UNROLL
    for (int n = 0; n < S::kRows / 8; ++n) {
      PAPERLAB_UNROLL
      for (int i = 0; i < 4; ++i) {
        const float delta = rows[8 * n + place_in_c(lane, i).column].delta;
        own.weights[0][n].of(lane)[i] *= products[0][n].of(lane)[i] - delta;
      }
    }
  });
}

template <class S, class T>
PAPERLAB_HD void key_step(T& team, KeyMemory<S>& memory, const BackwardLaunch& launch, int step) {
  using Lanes = typename T::Lanes;
  using E = typename S::Element;
  const KeyLoop& loop = memory.loop;
  const Bits* query = memory.query[step % 2];
  const RowStatistics(&rows)[S::kRows] = memory.rows[step % 2];
  team.each_warp([&](Lanes& warp, int number, typename T::Registers& own) {
    load_row_tile<S::kWidth, S::kRows>(warp, number, memory.grad, launch.attention,
                                       tile_of_step(launch.attention, loop, step, S::kRows),
                                       launch.forward.grad_out);
    clear(warp, own.weights);
    multiply_rows<E, S::kWidth>(warp, memory.key, 16 * number, query, 0, own.weights);
    weigh_keys<S>(warp, number, rows, loop.task.block, loop.scale, own);
    warp.wait();
  });
  team.each_warp([&](Lanes& warp, int number, typename T::Registers& own) {
    if (step + 1 < loop.count) {
      load_query_step<S>(warp, number, memory, launch, step + 1);
    }
    if constexpr (S::kHasValue) {
      multiply_columns<E, S::kWidth>(warp, own.weights, memory.grad, 0, own.value);
    }
    if constexpr (S::kHasKey) {
      Sums<Lanes> products[1][S::kRows / 8];
      clear(warp, products);
      multiply_rows<E, S::kWidth>(warp, memory.value, 16 * number, memory.grad, 0, products);
      differentiate_keys<S>(warp, rows, products, own);
      multiply_columns<E, S::kWidth>(warp, own.weights, query, 0, own.key);
    }
    warp.wait();
  });
}

// Copies a tile of results to the stream's rows of `view`.
template <class S, class Lanes>
PAPERLAB_HD void store_key_tile(const Lanes& warp, int number, const Bits* tile,
                                const BackwardLaunch& launch, const KeyTask& task,
                                const TensorView& view) {
  store_tile<S::kWidth, kOwnRows>(
      warp, number, tile, view.size[3], launch.is_whole_gradient, [&](int row) -> Bits* {
        const std::int64_t key = task.block.begin + row;
        return key < task.part.end ? static_cast<Bits*>(view.data) + task.batch * view.stride[0] +
                                         task.head * view.stride[1] + key * view.stride[2]
                                   : nullptr;
      });
}

template <class S, class T>
PAPERLAB_HD void store_keys(T& team, KeyMemory<S>& memory, const BackwardLaunch& launch) {
  using Lanes = typename T::Lanes;
  using E = typename S::Element;
  const KeyTask& task = memory.loop.task;
  const AttentionGradients& to = launch.gradients;
  team.each_warp([&](Lanes& warp, int number, typename T::Registers& own) {
    if constexpr (S::kHasKey) {
      const auto scale = static_cast<float>(launch.attention.in.scale);
      store_sums<E, S::kWidth>(warp, own.key, memory.key, 16 * number,
                               [=](int, int, int) { return scale; });
    }
    if constexpr (S::kHasValue) {
      store_sums<E, S::kWidth>(warp, own.value, memory.value, 16 * number,
                               [](int, int, int) { return 1.0F; });
    }
  });
  team.each_warp([&](Lanes& warp, int number, typename T::Registers&) {
    if constexpr (S::kHasKey) {
      store_key_tile<S>(warp, number, memory.key, launch, task,
                        task.block.is_prefix ? to.prefix_key : to.key);
    }
    if constexpr (S::kHasValue) {
      store_key_tile<S>(warp, number, memory.value, launch, task,
                        task.block.is_prefix ? to.prefix_value : to.value);
    }
  });
}

// Gradients of block `index` of keys and values.
template <class S, class T>
PAPERLAB_HD void key_block(T& team, KeyMemory<S>& memory, const BackwardLaunch& launch,
                           std::int64_t index) {
  begin_keys<S>(team, memory, launch, [&] { return key_task(launch.attention, index, kOwnRows); });
  for (int step = 0; step < memory.loop.count; ++step) {
    key_step<S>(team, memory, launch, step);
  }
  store_keys<S>(team, memory, launch);
}

}  // namespace paperlab::kernels
