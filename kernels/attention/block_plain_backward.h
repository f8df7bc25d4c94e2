#pragma once
// The backward pass of block_plain.h, in two kinds of blocks that recompute the weights from the
// log-sum-exp: one goes through all rows for a block of keys (gradients of key and value), one
// through all keys for a tile of rows (gradient of the query). Every sum has one owner and one
// order.

#include "kernels/attention/block_backward_task.h"
#include "kernels/attention/block_plain.h"

namespace paperlab::kernels {

template <class S>
struct PlainBackwardMemory {
  using Number = typename S::Number;
  Number query[S::kEdge * S::kRowStride];
  Number grad[S::kEdge * S::kRowStride];
  Number keys[S::kEdge * S::kRowStride];
  Number values[S::kEdge * S::kRowStride];
  Number weights[S::kEdge * S::kScoreStride];    // p
  Number gradients[S::kEdge * S::kScoreStride];  // p (dp - delta)
  Number lse[S::kEdge];                          // +infinity: the row's weights are 0
  Number delta[S::kEdge];
  RowLimits limits[S::kEdge];
};

template <class S>
struct PlainKeyRegisters {
  PlainSums<S> key;
  PlainSums<S> value;
};

template <class S>
struct PlainQueryRegisters {
  PlainSums<S> query;
};

// Rows of the queries that a stream's keys meet, their gradients and statistics.
template <class S>
PAPERLAB_HD void load_plain_tile(int thread, PlainBackwardMemory<S>& memory,
                                 const BackwardLaunch& launch, const RowTile& tile,
                                 bool is_prefix) {
  using Number = typename S::Number;
  const AttentionLaunch& of = launch.attention;
  const bool is_other = is_prefix && of.in.prefix_query.data != nullptr;
  load_tile_rows<S>(thread, memory.query, of, tile, is_other ? of.in.prefix_query : of.in.query);
  load_tile_rows<S>(thread, memory.grad, of, tile, launch.forward.grad_out);
  if (thread < S::kEdge) {
    const std::int64_t row = tile.first + smaller(thread, tile.count - 1);
    const std::int64_t at = statistic_at(of, tile.place, row);
    const Number lse = static_cast<const Number*>(launch.forward.lse)[at];
    const bool is_used = thread < tile.count && lse != -INFINITY;
    memory.lse[thread] = is_used ? lse : INFINITY;
    memory.delta[thread] = static_cast<const Number*>(launch.delta)[at];
    memory.limits[thread] = limits_of(keys_of_row(of, tile.place.batch, row));
  }
}

template <class S>
PAPERLAB_HD void load_key_block(int thread, PlainBackwardMemory<S>& memory,
                                const AttentionLaunch& of, UnitPlace place, const KeyBlock& block,
                                const KeyBlock& part) {
  const auto keys = key_stream<typename S::Number>(of, place, block.is_prefix);
  const std::int64_t head_dim = of.in.query.size[3];
  load_keys<S>(thread, memory.keys, keys.key, keys.key_stride, head_dim, block, part);
  load_keys<S>(thread, memory.values, keys.value, keys.value_stride, head_dim, block, part);
}

// The weights of a tile and block, and the gradients of their logits.
template <class S, class T>
PAPERLAB_HD void differentiate_plain(T& team, PlainBackwardMemory<S>& memory,
                                     const AttentionInputs& in, const KeyBlock& block) {
  using Number = typename S::Number;
  team.each([&](int thread, auto&) {
    Number scores[S::kOwn][S::kOwn];
    Number products[S::kOwn][S::kOwn];
    dot_rows<S>(thread, memory.query, memory.keys, in.query.size[3], scores);
    dot_rows<S>(thread, memory.grad, memory.values, in.query.size[3], products);
    const auto scale = static_cast<Number>(in.scale);
    each_score<S>(thread, memory.limits, block, [&](int i, int j, int place, bool is_seen) {
      const int row = thread / 16 + 16 * i;
      const Number p =
          is_seen ? Number(std::exp(scale * scores[i][j] - memory.lse[row])) : Number{0};
      memory.weights[place] = p;
      memory.gradients[place] = p * (products[i][j] - memory.delta[row]);
    });
  });
}

// ---------------------------------------------------------------------------------------------

template <class S, class T>
PAPERLAB_HD void add_row_tile(T& team, PlainBackwardMemory<S>& memory, const BackwardLaunch& launch,
                              const RowTile& tile, const KeyBlock& block) {
  const AttentionInputs& in = launch.attention.in;
  team.each([&](int thread, auto&) {
    load_plain_tile<S>(thread, memory, launch, tile, block.is_prefix);
  });
  differentiate_plain<S>(team, memory, in, block);
  team.each([&](int thread, PlainKeyRegisters<S>& own) {
    const typename S::Number* weights = memory.weights;
    const typename S::Number* gradients = memory.gradients;
    add_rows<S>(
        thread, memory.grad, in.query.size[3],
        [=](int key, int row) { return weights[row * S::kScoreStride + key]; }, own.value);
    add_rows<S>(
        thread, memory.query, in.query.size[3],
        [=](int key, int row) { return gradients[row * S::kScoreStride + key]; }, own.key);
  });
}

// Gradients of a block of keys and values.
template <class S, class T>
PAPERLAB_HD void plain_key_block(T& team, PlainBackwardMemory<S>& memory,
                                 const BackwardLaunch& launch, const KeyTask& task) {
  using Number = typename S::Number;
  const AttentionLaunch& of = launch.attention;
  const KeyBlock seen = seen_by_unit(of, task);
  team.each([&](int thread, PlainKeyRegisters<S>& own) {
    clear_sums<S>(own.key);
    clear_sums<S>(own.value);
    load_key_block<S>(thread, memory, of, {task.batch, task.first_unit}, task.block, seen);
  });
  for (std::int64_t unit = task.first_unit;
       seen.begin < seen.end && unit < task.first_unit + task.num_units; ++unit) {
    const UnitPlace place{task.batch, unit};
    const TileRange tiles = tiles_of(of, place, seen, S::kEdge);
    for (std::int64_t number = tiles.first; number < tiles.last; ++number) {
      add_row_tile<S>(team, memory, launch, tile_number(of, place, number, S::kEdge), task.block);
    }
  }
  const AttentionGradients& to = launch.gradients;
  const TensorView& key = task.block.is_prefix ? to.prefix_key : to.key;
  const TensorView& value = task.block.is_prefix ? to.prefix_value : to.value;
  const auto row_of = [&](const TensorView& view, int row) -> Number* {
    const std::int64_t number = task.block.begin + row;
    return number < task.part.end ? static_cast<Number*>(view.data) + task.batch * view.stride[0] +
                                        task.head * view.stride[1] + number * view.stride[2]
                                  : nullptr;
  };
  const auto scale = static_cast<Number>(of.in.scale);
  team.each([&](int thread, PlainKeyRegisters<S>& own) {
    store_plain_rows<S>(
        thread, own.key, key.size[3], [&](int row) { return row_of(key, row); },
        [=](int, Number x) { return scale * x; });
    store_plain_rows<S>(
        thread, own.value, key.size[3], [&](int row) { return row_of(value, row); },
        [](int, Number x) { return x; });
  });
}

// ---------------------------------------------------------------------------------------------

// Gradient of a tile of queries through the keys of a pass.
template <class S, class T>
PAPERLAB_HD void plain_query_pass(T& team, PlainBackwardMemory<S>& memory,
                                  const BackwardLaunch& launch, const RowTile& tile,
                                  const QueryPass& pass) {
  using Number = typename S::Number;
  const AttentionLaunch& of = launch.attention;
  const KeySteps steps = key_steps(pass.span, S::kEdge);
  team.each([&](int, PlainQueryRegisters<S>& own) { clear_sums<S>(own.query); });
  for (std::int64_t step = 0; step < steps.count; ++step) {
    const KeyBlock block = step_block(steps, step, S::kEdge);
    const KeyBlock part = part_of(block, pass.span);
    team.each([&](int thread, auto&) {
      if (step == 0) {
        load_plain_tile<S>(thread, memory, launch, tile, block.is_prefix);
      }
      load_key_block<S>(thread, memory, of, tile.place, block, part);
    });
    differentiate_plain<S>(team, memory, of.in, block);
    team.each([&](int thread, PlainQueryRegisters<S>& own) {
      const Number* gradients = memory.gradients;
      add_rows<S>(
          thread, memory.keys, of.in.query.size[3],
          [=](int row, int key) { return gradients[row * S::kScoreStride + key]; }, own.query);
    });
  }
  const auto scale = static_cast<Number>(of.in.scale);
  team.each([&](int thread, PlainQueryRegisters<S>& own) {
    store_plain_rows<S>(
        thread, own.query, of.in.query.size[3],
        [&](int row) -> Number* {
          return row < tile.count ? unit_row<Number>(pass.to, of, tile.place, tile.first + row)
                                  : nullptr;
        },
        [=](int, Number x) { return scale * x; });
  });
}

template <class S, class T>
PAPERLAB_HD void plain_query_block(T& team, PlainBackwardMemory<S>& memory,
                                   const BackwardLaunch& launch, const RowTile& tile) {
  const KeySpan span = span_of(keys_of_tile(launch.attention, tile).any);
  for (int pass = 0; pass < num_query_passes(launch); ++pass) {
    plain_query_pass<S>(team, memory, launch, tile, query_pass(launch, span, pass));
  }
}

}  // namespace paperlab::kernels
