#pragma once
// The groups of block_hopper.h that have rows.

#include "kernels/attention/block_hopper.h"

namespace paperlab::kernels {

template <class S, class Group>
struct HopperRegisters {
  Sums<Group> scores[S::kKeyTiles];
  Sums<Group> out[S::kWidth / 8];
  Words<Group> weights[S::kKeyTiles / 2];
  // Of the thread's two rows, in units of log 2; sum is the own thread's.
  typename Group::template Fragment<float, 2> largest;
  typename Group::template Fragment<float, 2> sum;
  typename Group::template Fragment<float, 2> rescale;  // of what was summed before
};

// The group's rows of the queries.
template <class S, class Group>
PAPERLAB_HD void load_group_query(Group& group, int number, HopperMemory<S>& memory,
                                  const AttentionLaunch& of, bool is_prefix) {
  const bool is_other = is_prefix && of.in.prefix_query.data != nullptr;
  const ConstTensorView& view = is_other ? of.in.prefix_query : of.in.query;
  const RowTile& rows = memory.loop.task.tile;
  PAPERLAB_NO_UNROLL
  for (int panel = 0; panel < S::kPanels; ++panel) {
    const int column = kBoxColumns * panel;
    load_tile<kBoxColumns, kGroupRows>(
        group, 0, memory.query[number] + column * kGroupRows, view.size[3] - column, true,
        static_cast<const Bits*>(view.data), [&](int i) -> const Bits* {
          const int row = kGroupRows * number + i;
          return row < rows.count
                     ? unit_row<const Bits>(view, of, rows.place, rows.first + row) + column
                     : nullptr;
        });
  }
}

template <class S, class Group>
PAPERLAB_HD void begin_rows(Group& group, int number, HopperMemory<S>& memory,
                            const AttentionLaunch& of, HopperRegisters<S, Group>& own) {
  if (memory.loop.count > 0) {
    load_group_query<S>(group, number, memory, of, memory.loop.steps.num_prefix > 0);
  }
  group.lanes([&](int thread) {
    const RowTile& tile = memory.loop.task.tile;
    if (thread < kGroupRows) {
      const int row = kGroupRows * number + thread;
      memory.limits[row] =
          limits_of(keys_of_row(of, tile.place.batch, tile.first + smaller(row, tile.count - 1)));
    }
    PAPERLAB_UNROLL
    for (int half = 0; half < 2; ++half) {
      own.largest.of(thread)[half] = -INFINITY;
      own.sum.of(thread)[half] = 0.0F;
    }
    PAPERLAB_UNROLL
    for (int n = 0; n < S::kWidth / 8; ++n) {
      PAPERLAB_UNROLL
      for (int i = 0; i < 4; ++i) {
        own.out[n].of(thread)[i] = 0.0F;
      }
    }
  });
  group.show();
}

template <class S, class Group>
PAPERLAB_HD void await_keys(Group& group, HopperMemory<S>& memory, int step) {
  const RingPlace at = ring_place(step, S::kStages);
  group.await_all(memory.keys.filled[at.stage], at.filled);
}

// Begins S = Q K^T. The keys are there.
template <class S, class Group>
PAPERLAB_HD void begin_scores(Group& group, int number, HopperMemory<S>& memory, int step,
                              HopperRegisters<S, Group>& own) {
  const int stage = ring_place(step, S::kStages).stage;
  group.begin_products(own.scores);
  PAPERLAB_UNROLL
  for (int panel = 0; panel < S::kPanels; ++panel) {
    const std::uint64_t rows = matrix_descriptor(
        group.address(memory.query[number] + panel * kGroupRows * kBoxColumns), 0);
    const std::uint64_t keys =
        matrix_descriptor(group.address(memory.key[stage] + panel * S::kKeys * kBoxColumns), 0);
    PAPERLAB_UNROLL
    for (int k = 0; k < kBoxColumns / 16; ++k) {
      group.template multiply_rows<typename S::Element>(own.scores, inner_along_rows(rows, k),
                                                        inner_along_rows(keys, k), panel + k > 0);
    }
  }
  group.commit();
}

// Begins O += P V.
template <class S, class Group>
PAPERLAB_HD void begin_sums(Group& group, HopperMemory<S>& memory, int step,
                            HopperRegisters<S, Group>& own) {
  const RingPlace at = ring_place(step, S::kStages);
  group.await_all(memory.values.filled[at.stage], at.filled);
  group.begin_products(own.out, own.weights);
  const std::uint64_t values =
      matrix_descriptor(group.address(memory.value[at.stage]), S::kKeys * kBoxRowBytes);
  PAPERLAB_UNROLL
  for (int k = 0; k < S::kKeyTiles / 2; ++k) {
    group.template multiply_columns<typename S::Element>(own.out, own.weights[k],
                                                         inner_across_rows(values, k));
  }
  group.commit();
}

// Scales the scores and puts -infinity where a row does not see the key.
template <class S, class Group>
PAPERLAB_HD void mask_group(const Group& group, int number, const HopperMemory<S>& memory,
                            const KeyBlock& block, HopperRegisters<S, Group>& own) {
  const float scale = memory.loop.scale;
  group.lanes([&](int thread) {
    PAPERLAB_UNROLL
    for (int half = 0; half < 2; ++half) {
      const MatrixPlace at = place_in_sums(thread, 2 * half);
      const RowLimits limits = memory.limits[kGroupRows * number + at.row];
      const int first = static_cast<int>(block.begin) + at.column;
      PAPERLAB_UNROLL
      for (int n = 0; n < S::kKeyTiles; ++n) {
        PAPERLAB_UNROLL
        for (int i = 0; i < 2; ++i) {
          float& score = own.scores[n].of(thread)[2 * half + i];
          score = limits.sees(block.is_prefix, first + 8 * n + i) ? scale * score : -INFINITY;
        }
      }
    }
  });
}

// Scores to weights relative to the largest score so far.
template <class S, class Group>
PAPERLAB_HD void soften_group(const Group& group, float factor, HopperRegisters<S, Group>& own) {
  typename Group::template Fragment<float, 2> most;
  find_largest<S>(group, own.scores, most);
  group.lanes([&](int thread) {
    PAPERLAB_UNROLL
    for (int half = 0; half < 2; ++half) {
      const float old = own.largest.of(thread)[half];
      const float largest = fmaxf(old, factor * most.of(thread)[half]);
      const float base = largest == -INFINITY ? 0.0F : largest;
      float sum = 0.0F;
      PAPERLAB_UNROLL
      for (int n = 0; n < S::kKeyTiles; ++n) {
        PAPERLAB_UNROLL
        for (int i = 0; i < 2; ++i) {
          float& score = own.scores[n].of(thread)[2 * half + i];
          score = power_of_two(fmaf(score, factor, -base));
          sum += score;
        }
      }
      const float rescale = power_of_two(old - base);
      own.largest.of(thread)[half] = largest;
      own.sum.of(thread)[half] = fmaf(own.sum.of(thread)[half], rescale, sum);
      own.rescale.of(thread)[half] = rescale;
    }
  });
}

template <class S, class Group>
PAPERLAB_HD void weigh_step(const Group& group, int number, const HopperMemory<S>& memory, int step,
                            HopperRegisters<S, Group>& own) {
  const ForwardLoop& loop = memory.loop;
  const KeyBlock block = step_block(loop.steps, step, S::kKeys);
  const bool is_plain = loop.scale > 0.0F && is_seen_by_all(block, loop.task.keys);
  if (!is_plain) {
    mask_group<S>(group, number, memory, block, own);
  }
  soften_group<S>(group, is_plain ? loop.scale : 1.0F, own);
}

// The weights as words of the left matrix.
template <class S, class Group>
PAPERLAB_HD void round_weights(const Group& group, HopperRegisters<S, Group>& own) {
  PAPERLAB_UNROLL
  for (int k = 0; k < S::kKeyTiles / 2; ++k) {
    as_left<typename S::Element>(group, own.scores, k, own.weights[k]);
  }
}

template <class S, class Group>
PAPERLAB_HD void rescale_sums(const Group& group, HopperRegisters<S, Group>& own) {
  group.lanes([&](int thread) {
    PAPERLAB_UNROLL
    for (int n = 0; n < S::kWidth / 8; ++n) {
      PAPERLAB_UNROLL
      for (int i = 0; i < 4; ++i) {
        own.out[n].of(thread)[i] *= own.rescale.of(thread)[i / 2];
      }
    }
  });
}

template <class S, class Group>
PAPERLAB_HD void free_place(const Group& group, RingBarriers<S>& ring, int step) {
  group.arrive_by_warps(ring.freed[ring_place(step, S::kStages).stage]);
}

// All steps. Between steps the products of the last weights and values are under way. The groups
// take turns in beginning products: while those of one are multiplied, the other makes weights.
template <class S, class Group>
PAPERLAB_HD void read_steps(Group& group, int number, HopperMemory<S>& memory,
                            const AttentionLaunch& of, HopperRegisters<S, Group>& own) {
  const int count = memory.loop.count;
  const int num_prefix = static_cast<int>(memory.loop.steps.num_prefix);
  const int other = S::kReaders - 1 - number;
  if (number > 0 && count > 1) {
    group.give_turn(other);
  }
  await_keys<S>(group, memory, 0);
  begin_scores<S>(group, number, memory, 0, own);
  group.template finish<0>(own.scores);
  free_place<S>(group, memory.keys, 0);
  weigh_step<S>(group, number, memory, 0, own);
  round_weights<S>(group, own);
  if (count > 1) {
    await_keys<S>(group, memory, 1);
  }
  PAPERLAB_NO_UNROLL
  for (int step = 1; step < count; ++step) {
    if (step == num_prefix && of.in.prefix_query.data != nullptr) {
      group.sync();  // the other warps' products have read the rows that are replaced
      load_group_query<S>(group, number, memory, of, false);
      group.show();
    }
    group.await_turn(number);
    begin_scores<S>(group, number, memory, step, own);
    begin_sums<S>(group, memory, step - 1, own);
    if (number == 0 || step + 1 < count) {  // every turn that is given is taken
      group.give_turn(other);
    }
    group.template finish<1>(own.scores);
    free_place<S>(group, memory.keys, step);
    weigh_step<S>(group, number, memory, step, own);
    if (step + 1 < count) {  // between weights and sums: else the compiler waits for the sums first
      await_keys<S>(group, memory, step + 1);
    }
    group.template finish<0>(own.out, own.weights);
    free_place<S>(group, memory.values, step - 1);
    rescale_sums<S>(group, own);
    round_weights<S>(group, own);
  }
  begin_sums<S>(group, memory, count - 1, own);
  group.template finish<0>(own.out, own.weights);
}

// ---------------------------------------------------------------------------------------------

// Statistics to global memory, results to the place of the queries.
template <class S, class Group>
PAPERLAB_HD void store_rows(Group& group, int number, HopperMemory<S>& memory,
                            const ForwardLaunch& launch, HopperRegisters<S, Group>& own) {
  const RowTile& tile = memory.loop.task.tile;
  Bits* to = memory.query[number];
  group.sync();  // the other warps' products have read the queries
  group.over_quad(own.sum, Plus{});
  group.lanes([&](int thread) {
    PAPERLAB_UNROLL
    for (int half = 0; half < 2; ++half) {
      const MatrixPlace at = place_in_sums(thread, 2 * half);
      const int row = kGroupRows * number + at.row;
      const float sum = own.sum.of(thread)[half];
      if (at.column == 0 && row < tile.count) {
        static_cast<float*>(
            launch.out.lse)[statistic_at(launch.attention, tile.place, tile.first + row)] =
            fmaf(own.largest.of(thread)[half], kLn2, std::log(sum));
      }
      const float by = sum == 0.0F ? 1.0F : 1.0F / sum;
      PAPERLAB_UNROLL
      for (int n = 0; n < S::kWidth / 8; ++n) {
        const float* pair = own.out[n].of(thread) + 2 * half;
        const std::int64_t panel = n / 8 * std::int64_t{kGroupRows} * kBoxColumns;
        group.write(to + panel + chunk_at(at.row, n % 8, kBoxColumns) + at.column,
                    to_word<typename S::Element>(by * pair[0], by * pair[1]));
      }
    }
  });
  group.sync();
}

// Group `number` of those that have rows.
template <class S, class Group>
PAPERLAB_HD void read_tiles(Group& group, int number, HopperMemory<S>& memory,
                            const ForwardLaunch& launch, HopperRegisters<S, Group>& own) {
  const AttentionLaunch& of = launch.attention;
  const RowTile& tile = memory.loop.task.tile;
  begin_rows<S>(group, number, memory, of, own);
  if (memory.loop.count > 0) {
    read_steps<S>(group, number, memory, of, own);
  }
  store_rows<S>(group, number, memory, launch, own);
  PAPERLAB_NO_UNROLL
  for (int panel = 0; panel < S::kPanels; ++panel) {
    const int column = kBoxColumns * panel;
    store_tile<kBoxColumns, kGroupRows>(
        group, 0, memory.query[number] + column * kGroupRows, of.in.query.size[3] - column,
        launch.is_whole_out, [&](int i) -> Bits* {
          const int row = kGroupRows * number + i;
          return row < tile.count
                     ? unit_row<Bits>(launch.out.out, of, tile.place, tile.first + row) + column
                     : nullptr;
        });
  }
}

}  // namespace paperlab::kernels
