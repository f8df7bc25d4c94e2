#pragma once
// Attention in float32 and float64 without tensor cores, forward: one block of 16 x 16 threads a
// tile of rows, a loop over steps of as many keys, online softmax. A thread owns rows y, y + 16, ..
// and keys or columns x, x + 16, ..

#include "kernels/attention/block_task.h"
#include "kernels/common/cuda/team.h"

namespace paperlab::kernels {

// kWidth: D padded; kEdge: rows of a tile and keys of a step.
template <class T, int kWidth_, int kEdge_>
struct PlainShape {
  using Number = T;
  static constexpr int kWidth = kWidth_;
  static constexpr int kEdge = kEdge_;
  static constexpr int kThreads = 256;
  static constexpr int kOwn = kEdge / 16;
  static constexpr int kColumns = kWidth / 16;
  static constexpr int kRowStride = kWidth + 1;  // neighbours read different banks
  static constexpr int kScoreStride = kEdge + 1;
  static constexpr int kParts = kThreads / kEdge;  // threads that share a row's softmax
};

using PlainForward128 = PlainShape<float, 128, 64>;
using PlainForward256 = PlainShape<float, 256, 32>;
using PlainBackward128 = PlainShape<float, 128, 32>;
using PlainBackward256 = PlainShape<float, 256, 32>;
using PlainDouble = PlainShape<double, 256, 16>;

template <class S>
using PlainSums = typename S::Number[S::kOwn][S::kColumns];

// Copies kEdge rows of D elements, zeros behind them; row_at(row) is an address or null: zeros.
template <class S, class RowAt>
PAPERLAB_HD void load_plain(int thread, typename S::Number* to, std::int64_t head_dim,
                            RowAt row_at) {
  for (int i = thread; i < S::kEdge * S::kWidth; i += S::kThreads) {
    const int row = i / S::kWidth;
    const int column = i % S::kWidth;
    const typename S::Number* from = row_at(row);
    to[row * S::kRowStride + column] =
        from != nullptr && column < head_dim ? from[column] : typename S::Number{0};
  }
}

// Rows of the tile in a tensor of the queries' shape.
template <class S>
PAPERLAB_HD void load_tile_rows(int thread, typename S::Number* to, const AttentionLaunch& launch,
                                const RowTile& tile, const ConstTensorView& view) {
  using Number = typename S::Number;
  load_plain<S>(thread, to, view.size[3], [&](int row) -> const Number* {
    return row < tile.count ? unit_row<const Number>(view, launch, tile.place, tile.first + row)
                            : nullptr;
  });
}

// The keys or values of `block` that lie in `part`.
template <class S>
PAPERLAB_HD void load_keys(int thread, typename S::Number* to, const typename S::Number* from,
                           std::int64_t stride, std::int64_t head_dim, const KeyBlock& block,
                           const KeyBlock& part) {
  load_plain<S>(thread, to, head_dim, [&](int row) -> const typename S::Number* {
    const std::int64_t key = block.begin + row;
    return key >= part.begin && key < part.end ? from + key * stride : nullptr;
  });
}

// sums[i][j] = row y + 16 i of a . row x + 16 j of b.
template <class S>
PAPERLAB_HD void dot_rows(int thread, const typename S::Number* a, const typename S::Number* b,
                          std::int64_t head_dim, typename S::Number (&sums)[S::kOwn][S::kOwn]) {
  const typename S::Number* left = a + thread / 16 * S::kRowStride;
  const typename S::Number* right = b + thread % 16 * S::kRowStride;
  PAPERLAB_UNROLL
  for (int i = 0; i < S::kOwn; ++i) {
    PAPERLAB_UNROLL
    for (int j = 0; j < S::kOwn; ++j) {
      sums[i][j] = 0;
    }
  }
  for (int d = 0; d < head_dim; ++d) {
    PAPERLAB_UNROLL
    for (int i = 0; i < S::kOwn; ++i) {
      PAPERLAB_UNROLL
      for (int j = 0; j < S::kOwn; ++j) {
        sums[i][j] =
            fused(left[16 * i * S::kRowStride + d], right[16 * j * S::kRowStride + d], sums[i][j]);
      }
    }
  }
}

// sums[i][c] += sum over n < kEdge of weight(y + 16 i, n) * rows[n][x + 16 c].
template <class S, class Weight>
PAPERLAB_HD void add_rows(int thread, const typename S::Number* rows, std::int64_t head_dim,
                          Weight weight, PlainSums<S>& sums) {
  const int y = thread / 16;
  const typename S::Number* from = rows + thread % 16;
  for (int n = 0; n < S::kEdge; ++n) {
    PAPERLAB_UNROLL
    for (int c = 0; c < S::kColumns; ++c) {
      if (std::int64_t{16} * c < head_dim) {
        const typename S::Number x = from[n * S::kRowStride + 16 * c];
        PAPERLAB_UNROLL
        for (int i = 0; i < S::kOwn; ++i) {
          sums[i][c] = fused(weight(y + 16 * i, n), x, sums[i][c]);
        }
      }
    }
  }
}

// Calls body(i, j, place, is_seen) for rows y + 16 i and keys x + 16 j of a block: their place in a
// matrix of scores, and whether the row sees the key.
template <class S, class Body>
PAPERLAB_HD void each_score(int thread, const RowLimits* limits, const KeyBlock& block, Body body) {
  PAPERLAB_UNROLL
  for (int i = 0; i < S::kOwn; ++i) {
    PAPERLAB_UNROLL
    for (int j = 0; j < S::kOwn; ++j) {
      const int row = thread / 16 + 16 * i;
      const int key = thread % 16 + 16 * j;
      body(i, j, row * S::kScoreStride + key,
           limits[row].sees(block.is_prefix, static_cast<int>(block.begin) + key));
    }
  }
}

// Rows y, y + 16, .. of `sums` to the rows that row_at names (null: none), as number(row, sum).
template <class S, class RowAt, class Convert>
PAPERLAB_HD void store_plain_rows(int thread, const PlainSums<S>& sums, std::int64_t head_dim,
                                  RowAt row_at, Convert number) {
  PAPERLAB_UNROLL
  for (int i = 0; i < S::kOwn; ++i) {
    const int row = thread / 16 + 16 * i;
    typename S::Number* to = row_at(row);
    PAPERLAB_UNROLL
    for (int c = 0; c < S::kColumns; ++c) {
      if (to != nullptr && thread % 16 + 16 * c < head_dim) {
        to[thread % 16 + 16 * c] = number(row, sums[i][c]);
      }
    }
  }
}

template <class S>
PAPERLAB_HD void clear_sums(PlainSums<S>& sums) {
  PAPERLAB_UNROLL
  for (int i = 0; i < S::kOwn; ++i) {
    PAPERLAB_UNROLL
    for (int c = 0; c < S::kColumns; ++c) {
      sums[i][c] = 0;
    }
  }
}

// ---------------------------------------------------------------------------------------------

template <class S>
struct PlainForwardMemory {
  using Number = typename S::Number;
  Number query[S::kEdge * S::kRowStride];
  Number keys[S::kEdge * S::kRowStride];  // then values
  Number scores[S::kEdge * S::kScoreStride];
  Number part_largest[S::kEdge * S::kParts];
  Number part_sum[S::kEdge * S::kParts];
  Number largest[S::kEdge];
  Number newest[S::kEdge];
  Number factor[S::kEdge];
  Number sum[S::kEdge];
  RowLimits limits[S::kEdge];
};

template <class S>
struct PlainForwardRegisters {
  PlainSums<S> out;
};

template <class S, class T>
PAPERLAB_HD void begin_plain(T& team, PlainForwardMemory<S>& memory, const ForwardLaunch& launch,
                             const ForwardTask& task) {
  team.each([&](int thread, PlainForwardRegisters<S>& own) {
    if (thread < S::kEdge) {
      const std::int64_t row = task.tile.first + smaller(thread, task.tile.count - 1);
      memory.limits[thread] = limits_of(keys_of_row(launch.attention, task.tile.place.batch, row));
      memory.largest[thread] = -INFINITY;
      memory.sum[thread] = 0;
    }
    clear_sums<S>(own.out);
  });
}

// The logits of a step, -infinity where a row does not see the key.
template <class S, class T>
PAPERLAB_HD void score_plain(T& team, PlainForwardMemory<S>& memory, const AttentionInputs& in,
                             const KeyBlock& block) {
  using Number = typename S::Number;
  team.each([&](int thread, auto&) {
    Number sums[S::kOwn][S::kOwn];
    dot_rows<S>(thread, memory.query, memory.keys, in.query.size[3], sums);
    const auto scale = static_cast<Number>(in.scale);
    each_score<S>(thread, memory.limits, block, [&](int i, int j, int place, bool is_seen) {
      memory.scores[place] = is_seen ? scale * sums[i][j] : -INFINITY;
    });
  });
}

// Turns a step's logits into exp(s - m), in two phases; the values are loaded beside the first.
template <class S, class T, class LoadValues>
PAPERLAB_HD void exp_plain(T& team, PlainForwardMemory<S>& memory, LoadValues load_values) {
  using Number = typename S::Number;
  team.each([&](int thread, auto&) {
    load_values(thread);
    const Number* row = memory.scores + thread / S::kParts * S::kScoreStride;
    Number largest = -INFINITY;
    for (int key = thread % S::kParts; key < S::kEdge; key += S::kParts) {
      largest = Larger{}(row[key], largest);
    }
    memory.part_largest[thread] = largest;
  });
  team.each([&](int thread, auto&) {
    const int number = thread / S::kParts;
    const Number old = memory.largest[number];
    Number newest = old;
    for (int part = 0; part < S::kParts; ++part) {
      newest = Larger{}(memory.part_largest[number * S::kParts + part], newest);
    }
    const Number base = newest == -INFINITY ? Number{0} : newest;
    Number* row = memory.scores + number * S::kScoreStride;
    Number sum = 0;
    for (int key = thread % S::kParts; key < S::kEdge; key += S::kParts) {
      row[key] = std::exp(row[key] - base);
      sum += row[key];
    }
    memory.part_sum[thread] = sum;
    if (thread % S::kParts == 0) {
      memory.newest[number] = newest;
      memory.factor[number] = exp_difference(old, base);
    }
  });
}

template <class S, class T>
PAPERLAB_HD void sum_plain(T& team, PlainForwardMemory<S>& memory, std::int64_t head_dim) {
  team.each([&](int thread, PlainForwardRegisters<S>& own) {
    PAPERLAB_UNROLL
    for (int i = 0; i < S::kOwn; ++i) {
      const typename S::Number factor = memory.factor[thread / 16 + 16 * i];
      PAPERLAB_UNROLL
      for (int c = 0; c < S::kColumns; ++c) {
        own.out[i][c] *= factor;
      }
    }
    const typename S::Number* scores = memory.scores;
    add_rows<S>(
        thread, memory.keys, head_dim,
        [=](int row, int key) { return scores[row * S::kScoreStride + key]; }, own.out);
    if (thread < S::kEdge) {
      typename S::Number sum = memory.sum[thread] * memory.factor[thread];
      for (int part = 0; part < S::kParts; ++part) {
        sum += memory.part_sum[thread * S::kParts + part];
      }
      memory.sum[thread] = sum;
      memory.largest[thread] = memory.newest[thread];
    }
  });
}

// Out and log-sum-exp of the tile's rows, or their parts of this run.
template <class S, class T>
PAPERLAB_HD void store_plain(T& team, const PlainForwardMemory<S>& memory,
                             const ForwardLaunch& launch, const ForwardTask& task) {
  using Number = typename S::Number;
  const AttentionLaunch& of = launch.attention;
  const std::int64_t head_dim = of.in.query.size[3];
  const bool is_part = task.run >= 0;
  const auto row_at = [&](int row) -> Number* {
    const std::int64_t number = task.tile.first + row;
    return row >= task.tile.count ? nullptr
           : is_part              ? static_cast<Number*>(launch.partials) +
                                        partial_at(of, task.tile.place, number, task.run)
                                  : unit_row<Number>(launch.out.out, of, task.tile.place, number);
  };
  team.each([&](int thread, PlainForwardRegisters<S>& own) {
    store_plain_rows<S>(thread, own.out, head_dim, row_at, [&](int row, Number x) {
      return is_part || memory.sum[row] == Number{0} ? x : x / memory.sum[row];
    });
    if (thread < task.tile.count && is_part) {
      row_at(thread)[head_dim] = memory.largest[thread];
      row_at(thread)[head_dim + 1] = memory.sum[thread];
    } else if (thread < task.tile.count) {
      const std::int64_t at = statistic_at(of, task.tile.place, task.tile.first + thread);
      static_cast<Number*>(launch.out.lse)[at] =
          memory.largest[thread] + std::log(memory.sum[thread]);
    }
  });
}

// One block of the forward pass.
template <class S, class T>
PAPERLAB_HD void plain_forward_block(T& team, PlainForwardMemory<S>& memory,
                                     const ForwardLaunch& launch, const ForwardTask& task) {
  const AttentionInputs& in = launch.attention.in;
  const std::int64_t head_dim = in.query.size[3];
  const KeySteps steps = key_steps(task.span, S::kEdge);
  begin_plain<S>(team, memory, launch, task);
  for (std::int64_t step = 0; step < steps.count; ++step) {
    const KeyBlock block = step_block(steps, step, S::kEdge);
    const KeyBlock part = part_of(block, task.span);
    const auto keys =
        key_stream<typename S::Number>(launch.attention, task.tile.place, block.is_prefix);
    team.each([&](int thread, auto&) {
      if (step == 0 || step == steps.num_prefix) {
        const bool is_other = block.is_prefix && in.prefix_query.data != nullptr;
        load_tile_rows<S>(thread, memory.query, launch.attention, task.tile,
                          is_other ? in.prefix_query : in.query);
      }
      load_keys<S>(thread, memory.keys, keys.key, keys.key_stride, head_dim, block, part);
    });
    score_plain<S>(team, memory, in, block);
    exp_plain<S>(team, memory, [&](int thread) {
      load_keys<S>(thread, memory.keys, keys.value, keys.value_stride, head_dim, block, part);
    });
    sum_plain<S>(team, memory, head_dim);
  }
  store_plain<S>(team, memory, launch, task);
}

}  // namespace paperlab::kernels
