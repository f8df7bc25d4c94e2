#pragma once
// A task whose query has logits so far apart (kMaxSpread) that exponentials relative to the largest
// of all keys may vanish from every position of a string: each string's own largest logit takes its
// place, O(L) exponentials a string. Host-device; see common/cuda/one_layer_block.h.

#include "kernels/one_layer_fold/block.h"

namespace paperlab::kernels {

struct WideChunk {
  Items strings;
  double largest[kItems];
};

struct WideMemory {
  double logits[kTableSize];  // not yet divided by the scale
  double u[kTableSize];
  union {  // one after the other
    WideChunk chunk;
    double lanes[kNumOutputs * kLaneStride];
    EvaluationSum evaluations[kBlockThreads];
  };
};

struct WideRegisters {
  PositionSums by_position;
};

// What a task reads: the query's row of w, and u.
struct WideTask {
  const AffineGroup* group;
  FoldShape shape;
  RowRange rows;
  const double* w;
  const double* u;
  double scale;

  PAPERLAB_HD int num_strings() const { return (rows.end - rows.begin) * num_columns(shape); }
};

PAPERLAB_HD inline WideTask wide_task(const AffineGroup& group, int index,
                                      const OneLayerParameters& parameters) {
  const FoldShape shape = tile_shape(group.num_bits);
  const int query = embedding_index(group.length - 1, group.query);
  return {&group,
          shape,
          task_rows(shape, index),
          parameters.w + std::int64_t{2} * query * parameters.max_length,
          parameters.u,
          parameters.attention_scale};
}

struct WideString {
  std::uint32_t word;
  double y;
  double largest;  // logit
  ScorePart score;
};

// String `number` of the task, in the order of rows.
PAPERLAB_HD inline WideString wide_string(const WideMemory& memory, const WideTask& task,
                                          int number) {
  const AffineGroup& group = *task.group;
  const int row = task.rows.begin + number / num_columns(task.shape);
  const int column = number % num_columns(task.shape);
  WideString string{row_word(group, task.shape, row) | column_word(group, task.shape, column),
                    row % 2 == 0 ? 1.0 : -1.0, -HUGE_VAL, ScorePart{0.0, 0.0}};
  for (int l = 0; l < group.length; ++l) {
    const double logit = memory.logits[embedding_index(l, bit_of(string.word, l))];
    string.largest = logit > string.largest ? logit : string.largest;
  }
  for (int l = 0; l < group.length; ++l) {
    const int at = embedding_index(l, bit_of(string.word, l));
    const double e = std::exp((memory.logits[at] - string.largest) / task.scale);
    string.score.z += e;
    string.score.n += e * memory.u[at];
  }
  return string;
}

template <Team T>
PAPERLAB_HD void begin_wide(T& team, WideMemory& memory, const WideTask& task) {
  team.each([&](int thread, auto&) {
    if (thread < 2 * task.group->length) {
      memory.logits[thread] = task.w[thread];
      memory.u[thread] = task.u[thread];
    }
  });
}

// Adds this lane's share of e Q and e R of the first `count` strings.
PAPERLAB_HD inline void add_wide_strings(int thread, const WideMemory& memory, int count,
                                         const WideTask& task, PositionSums& sums) {
  const std::uint32_t positions = all_positions(task.group->length);
  for (int item = thread % kWarp; item < count; item += kWarp) {
    const Items& strings = memory.chunk.strings;
    const std::uint32_t word = strings.word[item];
    PAPERLAB_UNROLL
    for (int slot = 0; slot < kPositionsPerWarp; ++slot) {
      const int l = position_of(thread, slot);
      if (bit_of(positions, l) != 0) {
        const bool is_b = bit_of(word, l) != 0;
        const double logit = memory.logits[embedding_index(l, is_b ? 1 : 0)];
        const double e = std::exp((logit - memory.chunk.largest[item]) / task.scale);
        const double q = e * strings.q[item];
        const double r = e * strings.r[item];
        sums.q[slot][0] += is_b ? 0.0 : q;
        sums.q[slot][1] += is_b ? q : 0.0;
        sums.r[slot][0] += is_b ? 0.0 : r;
        sums.r[slot][1] += is_b ? r : 0.0;
      }
    }
  }
}

// Writes the marginals [2 L] of the task's strings, multiplied by their exponentials already: the
// query's table of exponentials counts as 1.
template <Team T>
PAPERLAB_HD void wide_block(T& team, WideMemory& memory, const WideTask& task, Marginal* out) {
  begin_wide(team, memory, task);
  team.each([&](int, WideRegisters& own) { clear(own.by_position); });
  for (int first = 0; first < task.num_strings(); first += kItems) {
    const int rest = task.num_strings() - first;
    const int count = rest < kItems ? rest : kItems;
    team.each([&](int thread, auto&) {
      for (int item = thread; item < count; item += kBlockThreads) {
        const WideString string = wide_string(memory, task, first + item);
        const Marginal marginal =
            string_marginal(string.score.z, string.score.n, string.y, task.group->weight);
        memory.chunk.strings.q[item] = marginal.q;
        memory.chunk.strings.r[item] = marginal.r;
        memory.chunk.strings.word[item] = string.word;
        memory.chunk.largest[item] = string.largest;
      }
    });
    team.each([&](int thread, WideRegisters& own) {
      add_wide_strings(thread, memory, count, task, own.by_position);
    });
  }
  team.each([&](int thread, WideRegisters& own) {
    store_lanes(thread, all_positions(task.group->length), own.by_position, memory.lanes);
  });
  team.each([&](int thread, auto&) {
    if (thread < 4 * task.group->length) {
      write_output(out, thread, sum_lanes(memory.lanes, thread));
    }
  });
}

// Writes the loss, smallest margin and number of correct strings of the task.
template <Team T>
PAPERLAB_HD void wide_evaluate_block(T& team, WideMemory& memory, const WideTask& task,
                                     EvaluationSum* out) {
  begin_wide(team, memory, task);
  team.each([&](int thread, auto&) {
    EvaluationSum sum = empty_evaluation();
    for (int number = thread; number < task.num_strings(); number += kBlockThreads) {
      const WideString string = wide_string(memory, task, number);
      add_margin(string.y * string.score.n / string.score.z, task.group->weight, sum);
    }
    memory.evaluations[thread] = sum;
  });
  add_up(team, memory.evaluations);
  team.each([&](int thread, auto&) {
    if (thread == 0) {
      *out = memory.evaluations[0];
    }
  });
}

}  // namespace paperlab::kernels
