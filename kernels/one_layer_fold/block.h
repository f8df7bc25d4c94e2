#pragma once
// One task of the fold on one block of GPU threads (host-device; see
// common/cuda/one_layer_block.h). A thread owns four columns: its parts of Z and N and its sums of
// Q and R stay in registers. Rows come in chunks: every thread stores its sums of a row, then 128
// threads add them up.

#include "kernels/common/cuda/one_layer_block.h"
#include "kernels/one_layer_fold/tile.h"

namespace paperlab::kernels {

static_assert(kItems == 1 << kMaxColumnBits, "a block's threads own all columns");
static_assert(kTaskRows % 2 == 0, "rows come in pairs that differ in the label alone");

constexpr int kChunkRows = 16;
constexpr int kRowParts = 4;                           // threads that add up one value of a row
constexpr int kRowStride = kBlockThreads + kRowParts;  // neighbours read different banks
static_assert(2 * kChunkRows * kRowParts == kBlockThreads);

// Value (row of the chunk, Q or R) of each thread.
PAPERLAB_HD constexpr int row_value(int row, int is_r) { return 2 * row + is_r; }
PAPERLAB_HD constexpr int row_index(int value, int thread) { return value * kRowStride + thread; }

struct FoldMemory {
  double e[kTableSize];
  double eu[kTableSize];
  ScorePart rows[kTaskRows];
  std::uint32_t row_words[kTaskRows];
  double row_sums[2 * kTaskRows];
  double part_sums[kBlockThreads];
  union {  // one after the other
    double of_rows[2 * kChunkRows * kRowStride];
    Items columns;
    double lanes[kNumOutputs * kLaneStride];
    EvaluationSum evaluations[kBlockThreads];
  };
};

struct FoldRegisters {
  ScorePart part[kItemsPerThread];
  double weight[kItemsPerThread];  // 0 where there is no such column
  Marginal sum[kItemsPerThread];
  PositionSums by_position;
};

// What a task reads and where it writes.
struct FoldTask {
  const AffineGroup* group;
  FoldShape shape;
  RowRange rows;
  int padded_rows;  // even: a group of one string has no second row
  QueryTable table;
};

PAPERLAB_HD inline FoldTask fold_task(const AffineGroup& group, int index, QueryTable table) {
  const FoldShape shape = tile_shape(group.num_bits);
  const RowRange rows = task_rows(shape, index);
  return {&group, shape, rows, (rows.end - rows.begin + 1) / 2 * 2, table};
}

// Fills the table, the rows and each thread's columns.
template <Team T>
PAPERLAB_HD void begin_fold(T& team, FoldMemory& memory, const FoldTask& task) {
  const AffineGroup& group = *task.group;
  const std::uint32_t of_columns = column_positions(group, task.shape);
  team.each([&](int thread, auto&) {
    if (thread < 2 * group.length) {
      memory.e[thread] = task.table.e[thread];
      memory.eu[thread] = task.table.eu[thread];
    }
  });
  const QueryTable table{memory.e, memory.eu};
  team.each([&](int thread, FoldRegisters& own) {
    if (thread < task.padded_rows) {
      const int row = task.rows.begin + thread;
      const std::uint32_t word =
          row_word(group, task.shape, row < task.rows.end ? row : task.rows.begin);
      memory.row_words[thread] = word;
      memory.rows[thread] = score_part(table, group.length, ~of_columns, word);
    }
    PAPERLAB_UNROLL
    for (int slot = 0; slot < kItemsPerThread; ++slot) {
      const int column = item_of(thread, slot);
      const int existing = column & (num_columns(task.shape) - 1);
      own.part[slot] =
          score_part(table, group.length, of_columns, column_word(group, task.shape, existing));
      own.weight[slot] = column < num_columns(task.shape) ? group.weight : 0.0;
      own.sum[slot] = {0.0, 0.0};
    }
  });
}

PAPERLAB_HD inline void add(Marginal& to, Marginal value) {
  to.q += value.q;
  to.r += value.r;
}

// One thread's strings of two rows that differ in the label alone.
PAPERLAB_HD inline void fold_pair(int thread, ScorePart plus, ScorePart minus, bool has_minus,
                                  int row, FoldRegisters& own, double* of_rows) {
  Marginal of_plus{0.0, 0.0};
  Marginal of_minus{0.0, 0.0};
  PAPERLAB_UNROLL
  for (int slot = 0; slot < kItemsPerThread; ++slot) {
    const ScorePart part = own.part[slot];
    const double weight = own.weight[slot];
    const Marginal a = string_marginal(plus.z + part.z, plus.n + part.n, 1.0, weight);
    const Marginal b =
        string_marginal(minus.z + part.z, minus.n + part.n, -1.0, has_minus ? weight : 0.0);
    add(of_plus, a);
    add(of_minus, b);
    // The pair is summed first: where the labels balance, the columns stay exactly 0.
    add(own.sum[slot], {a.q + b.q, a.r + b.r});
  }
  of_rows[row_index(row_value(row, 0), thread)] = of_plus.q;
  of_rows[row_index(row_value(row, 1), thread)] = of_plus.r;
  of_rows[row_index(row_value(row + 1, 0), thread)] = of_minus.q;
  of_rows[row_index(row_value(row + 1, 1), thread)] = of_minus.r;
}

template <Team T>
PAPERLAB_HD void fold_chunk(T& team, FoldMemory& memory, const FoldTask& task, int first) {
  const int rest = task.padded_rows - first;
  const int count = rest < kChunkRows ? rest : kChunkRows;
  team.each([&](int thread, FoldRegisters& own) {
    for (int row = 0; row < count; row += 2) {
      const int at = first + row;
      fold_pair(thread, memory.rows[at], memory.rows[at + 1],
                task.rows.begin + at + 1 < task.rows.end, row, own, memory.of_rows);
    }
  });
  team.each([&](int thread, auto&) {
    const int value = thread / kRowParts;
    double sum = 0.0;
    for (int i = thread % kRowParts; i < kBlockThreads && value < 2 * count; i += kRowParts) {
      sum += memory.of_rows[row_index(value, i)];
    }
    memory.part_sums[thread] = sum;
  });
  team.each([&](int thread, auto&) {
    if (thread < 2 * count) {
      const double* parts = memory.part_sums + std::ptrdiff_t{thread} * kRowParts;
      memory.row_sums[row_value(first, 0) + thread] = (parts[0] + parts[1]) + (parts[2] + parts[3]);
    }
  });
}

// Sum over the task's rows with token s at position l.
PAPERLAB_HD inline double sum_rows(const FoldMemory& memory, int padded_rows, int l, int s,
                                   int is_r) {
  double sum = 0.0;
  for (int row = 0; row < padded_rows; row += 2) {
    const bool has_plus = bit_of(memory.row_words[row], l) == s;
    const bool has_minus = bit_of(memory.row_words[row + 1], l) == s;
    sum += (has_plus ? memory.row_sums[row_value(row, is_r)] : 0.0) +
           (has_minus ? memory.row_sums[row_value(row + 1, is_r)] : 0.0);
  }
  return sum;
}

// Writes the marginals [2 L] of the task's strings.
template <Team T>
PAPERLAB_HD void fold_block(T& team, FoldMemory& memory, const FoldTask& task, Marginal* out) {
  begin_fold(team, memory, task);
  for (int first = 0; first < task.padded_rows; first += kChunkRows) {
    fold_chunk(team, memory, task, first);
  }
  const AffineGroup& group = *task.group;
  const std::uint32_t of_columns = column_positions(group, task.shape);
  team.each([&](int thread, FoldRegisters& own) {
    PAPERLAB_UNROLL
    for (int slot = 0; slot < kItemsPerThread; ++slot) {
      const int column = item_of(thread, slot);
      memory.columns.q[column] = own.sum[slot].q;
      memory.columns.r[column] = own.sum[slot].r;
      memory.columns.word[column] = column_word(group, task.shape, column);
    }
  });
  team.each([&](int thread, FoldRegisters& own) {
    clear(own.by_position);
    add_items(thread, memory.columns, num_columns(task.shape), of_columns, own.by_position);
  });
  team.each([&](int thread, FoldRegisters& own) {
    store_lanes(thread, of_columns, own.by_position, memory.lanes);
  });
  team.each([&](int thread, auto&) {
    if (thread < 4 * group.length) {
      const int l = thread / 4;
      const double sum = bit_of(of_columns, l) != 0
                             ? sum_lanes(memory.lanes, thread)
                             : sum_rows(memory, task.padded_rows, l, thread / 2 % 2, thread % 2);
      write_output(out, thread, sum);
    }
  });
}

// Writes the loss, smallest margin and number of correct strings of the task.
template <Team T>
PAPERLAB_HD void fold_evaluate_block(T& team, FoldMemory& memory, const FoldTask& task,
                                     EvaluationSum* out) {
  begin_fold(team, memory, task);
  team.each([&](int thread, FoldRegisters& own) {
    EvaluationSum sum = empty_evaluation();
    for (int row = 0; row < task.rows.end - task.rows.begin; ++row) {
      const double y = row % 2 == 0 ? 1.0 : -1.0;
      PAPERLAB_UNROLL
      for (int slot = 0; slot < kItemsPerThread; ++slot) {
        if (item_of(thread, slot) < num_columns(task.shape)) {
          const double t =
              (memory.rows[row].n + own.part[slot].n) / (memory.rows[row].z + own.part[slot].z);
          add_margin(y * t, task.group->weight, sum);
        }
      }
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
