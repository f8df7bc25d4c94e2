#pragma once
// What blocks of the forward pass are given, and the merging of partial results where few queries
// are split over their keys.

#include <cmath>

#include "kernels/attention/block_rows.h"
#include "kernels/common/cuda/elements.h"
#include "kernels/common/cuda/reduce.h"

namespace paperlab::kernels {

// T: the elements. Statistics and partial results are NumberOf<T>.
struct ForwardLaunch {
  AttentionLaunch attention;
  AttentionOutputs out;
  bool is_whole_out;
  void* partials;  // [batch, unit, row, run, partial_width(D)]; null: all keys at once
};

// A run's sum over its keys of exp(s - m) v [D], then m and the sum of exp(s - m).
PAPERLAB_HD constexpr std::int64_t partial_width(std::int64_t head_dim) { return head_dim + 2; }

PAPERLAB_HD inline KeyRuns key_runs(const AttentionInputs& in) {
  return {num_prefix_of(in), in.key.size[2], in.query.size[3]};
}

PAPERLAB_HD inline std::int64_t partial_at(const AttentionLaunch& launch, UnitPlace place,
                                           std::int64_t row, std::int64_t run) {
  const std::int64_t unit = place.batch * launch.rows.num_units + place.unit;
  return ((unit * launch.rows.num_rows + row) * key_runs(launch.in).count + run) *
         partial_width(launch.in.query.size[3]);
}

// One block's work.
struct ForwardTask {
  RowTile tile;
  TileKeys keys;
  KeySpan span;
  std::int64_t run;  // of the split; below 0: all keys
};

// Block `index` of num_blocks: without a split those of row_tile, else a run of each, tile by tile.
PAPERLAB_HD inline ForwardTask forward_task(const ForwardLaunch& launch, std::int64_t index,
                                            int tile_rows) {
  if (launch.partials == nullptr) {
    const RowTile tile = row_tile(launch.attention, index, tile_rows);
    const TileKeys keys = keys_of_tile(launch.attention, tile);
    return {tile, keys, span_of(keys.any), -1};
  }
  const KeyRuns runs = key_runs(launch.attention.in);
  const RowTile tile = row_tile(launch.attention, index / runs.count, tile_rows);
  const TileKeys keys = keys_of_tile(launch.attention, tile);
  return {tile, keys, runs.part(index % runs.count, keys.any), index % runs.count};
}

PAPERLAB_HD inline std::int64_t num_forward_blocks(const ForwardLaunch& launch, int tile_rows) {
  const std::int64_t tiles = num_row_tiles(launch.attention, tile_rows);
  return launch.partials == nullptr ? tiles : tiles * key_runs(launch.attention.in).count;
}

// exp(x - y) with weight 0 for x = -infinity, whatever y.
PAPERLAB_HD inline float exp_difference(float x, float y) {
  return x == static_cast<double>(-INFINITY) ? 0.0F : std::exp(x - y);
}
PAPERLAB_HD inline double exp_difference(double x, double y) {
  return x == static_cast<double>(-INFINITY) ? 0.0 : std::exp(x - y);
}

// ---------------------------------------------------------------------------------------------

constexpr int kMergeThreads = 128;

template <class Number>
struct MergeTotals {
  Number largest;
  Number sum;
};

// Over the runs of a row, in order.
template <class Number>
PAPERLAB_HD MergeTotals<Number> merge_totals(const Number* runs, std::int64_t count,
                                             std::int64_t head_dim) {
  const std::int64_t width = partial_width(head_dim);
  MergeTotals<Number> totals{-INFINITY, 0};
  for (std::int64_t run = 0; run < count; ++run) {
    totals.largest = Larger{}(runs[run * width + head_dim], totals.largest);
  }
  for (std::int64_t run = 0; run < count; ++run) {
    const Number weight = exp_difference(runs[run * width + head_dim], totals.largest);
    totals.sum = fused(weight, runs[run * width + head_dim + 1], totals.sum);
  }
  return totals;
}

// Row `index` of batch * units * rows from the partial results of its runs.
template <class E, class T>
PAPERLAB_HD void merge_block(T& team, const ForwardLaunch& launch, std::int64_t index) {
  using Number = NumberOf<E>;
  const AttentionLaunch& of = launch.attention;
  const std::int64_t head_dim = of.in.query.size[3];
  const std::int64_t count = key_runs(of.in).count;
  const std::int64_t row = index % of.rows.num_rows;
  const std::int64_t unit = index / of.rows.num_rows;
  const UnitPlace place{unit / of.rows.num_units, unit % of.rows.num_units};
  const Number* runs = static_cast<const Number*>(launch.partials) + partial_at(of, place, row, 0);
  E* out = unit_row<E>(launch.out.out, of, place, row);
  team.each([&](int thread, auto&) {
    const MergeTotals<Number> totals = merge_totals(runs, count, head_dim);
    const Number divisor = totals.sum == Number{0} ? Number{1} : totals.sum;
    for (std::int64_t d = thread; d < head_dim; d += kMergeThreads) {
      Number sum = 0;
      for (std::int64_t run = 0; run < count; ++run) {
        const Number* part = runs + run * partial_width(head_dim);
        sum = fused(exp_difference(part[head_dim], totals.largest), part[d], sum);
      }
      out[d] = to_element<E>(sum / divisor);
    }
    if (thread == 0) {
      static_cast<Number*>(launch.out.lse)[statistic_at(of, place, row)] =
          totals.largest + std::log(totals.sum);
    }
  });
}

}  // namespace paperlab::kernels
