#pragma once
// Even pairs on all strings of 1..max_length tokens without a plan: which task a block has, where
// its results lie, and the strings themselves are arithmetic, so that nothing is copied to the
// device. Host-device; see common/cuda/one_layer_block.h.

#include <cstddef>

#include "kernels/one_layer_fold/block_wide.h"

namespace paperlab::kernels {

// Task `index` of (length, query); a length's two queries follow one another.
struct EvenPairsTask {
  int length;
  int query;
  int index;
  std::int64_t marginals;  // place of its results [2 length]
};

// The tasks of one (length, query).
struct EvenPairsTasks {
  std::int64_t first;  // place of the first one's marginals
  int length;
  int count;

  PAPERLAB_HD constexpr std::int64_t place(int task) const {
    return first + std::int64_t{2} * task * length;
  }
};

// Of column embedding_index(length - 1, query).
PAPERLAB_HD constexpr EvenPairsTasks even_pairs_tasks(int column) {
  std::int64_t first = 0;
  for (int length = 1; length <= column / 2; ++length) {
    first += std::int64_t{4} * length * num_tasks(length - 1);
  }
  const int length = column / 2 + 1;
  const int count = num_tasks(length - 1);
  return {first + (column % 2 == 0 ? 0 : std::int64_t{2} * length * count), length, count};
}

PAPERLAB_HD constexpr int num_even_pairs_tasks(int max_length) {
  int count = 0;
  for (int length = 1; length <= max_length; ++length) {
    count += 2 * num_tasks(length - 1);
  }
  return count;
}

PAPERLAB_HD constexpr EvenPairsTask even_pairs_task(int number) {
  std::int64_t first = 0;
  int length = 1;
  while (number >= 2 * num_tasks(length - 1)) {
    first += std::int64_t{4} * length * num_tasks(length - 1);
    number -= 2 * num_tasks(length - 1);
    ++length;
  }
  const int count = num_tasks(length - 1);
  return {length, number / count, number % count, first + std::int64_t{2} * length * number};
}

// Memory of one call: tables [2 max_length, kTableSize] and whether a query's logits are further
// apart than kMaxSpread; then the results of its tasks and queries.
struct EvenPairsMemory {
  double* e;
  double* eu;
  double* parts_of_u;
  Marginal* marginals;
  EvaluationSum* evaluations;
  int* is_wide;

  PAPERLAB_HD QueryTable table(int column) const {
    return {e + std::int64_t{column} * kTableSize, eu + std::int64_t{column} * kTableSize};
  }
};

// Bytes of such memory, and its parts from `memory` on, aligned to 8 bytes.
constexpr std::int64_t even_pairs_bytes(int max_length) {
  const std::int64_t columns = std::int64_t{2} * max_length;
  const std::int64_t num_marginals = even_pairs_tasks(2 * max_length).first;
  constexpr std::int64_t kColumn =
      std::int64_t{3} * kTableSize * static_cast<std::int64_t>(sizeof(double)) +
      static_cast<std::int64_t>(sizeof(int));
  return columns * kColumn + num_marginals * static_cast<std::int64_t>(sizeof(Marginal)) +
         num_even_pairs_tasks(max_length) * static_cast<std::int64_t>(sizeof(EvaluationSum));
}

inline EvenPairsMemory even_pairs_memory(int max_length, void* memory) {
  const std::int64_t table = std::int64_t{2} * max_length * kTableSize;
  auto* e = static_cast<double*>(memory);
  auto* marginals = reinterpret_cast<Marginal*>(e + 3 * table);
  auto* evaluations =
      reinterpret_cast<EvaluationSum*>(marginals + even_pairs_tasks(2 * max_length).first);
  return {e,
          e + table,
          e + 2 * table,
          marginals,
          evaluations,
          reinterpret_cast<int*>(evaluations + num_even_pairs_tasks(max_length))};
}

struct EvenPairsLaunch {
  OneLayerParameters parameters;
  EvenPairsMemory memory;
};

// Entry i of a query's tables. Exponentials of wide queries are in their marginals already.
PAPERLAB_HD inline void write_table(const EvenPairsLaunch& launch, int column, int i) {
  const OneLayerParameters& of = launch.parameters;
  const double* w = of.w + std::int64_t{2} * column * of.max_length;
  const int length = column / 2 + 1;
  const bool is_wide = table_spread(w, length, column % 2, of.attention_scale) > kMaxSpread;
  if (i < 2 * length) {
    const std::int64_t at = std::int64_t{column} * kTableSize + i;
    const double e = is_wide ? 1.0 : table_entry(w, length, column % 2, of.attention_scale, i);
    launch.memory.e[at] = e;
    launch.memory.eu[at] = e * of.u[i];
  }
  if (i == 0) {
    launch.memory.is_wide[column] = is_wide ? 1 : 0;
  }
}

// A block's shared memory: of the fold or of a wide query.
template <class Memory>
struct EvenPairsShared {
  AffineGroup group;
  Memory task;
};

// Calls body(task) on the blocks whose query is wide, or is not.
template <Team T, class Memory, class Body>
PAPERLAB_HD void with_even_pairs_task(T& team, EvenPairsShared<Memory>& shared,
                                      const EvenPairsLaunch& launch, int number, bool is_wide,
                                      Body body) {
  const EvenPairsTask task = even_pairs_task(number);
  const int column = embedding_index(task.length - 1, task.query);
  if ((launch.memory.is_wide[column] != 0) != is_wide) {
    return;
  }
  team.each([&](int thread, auto&) {
    if (thread == 0) {
      set_even_pairs(shared.group, task.length, task.query);
    }
  });
  body(task, launch.memory.table(column));
}

// Task `number` of num_even_pairs_tasks: writes its marginals, or what evaluations tell. The blocks
// of the fold serve most queries, those of block_wide.h the others.
template <Team T>
PAPERLAB_HD void even_pairs_block(T& team, EvenPairsShared<FoldMemory>& shared,
                                  const EvenPairsLaunch& launch, int number) {
  with_even_pairs_task(team, shared, launch, number, /*is_wide=*/false,
                       [&](const EvenPairsTask& task, QueryTable table) {
                         fold_block(team, shared.task, fold_task(shared.group, task.index, table),
                                    launch.memory.marginals + task.marginals);
                       });
}

template <Team T>
PAPERLAB_HD void even_pairs_evaluate_block(T& team, EvenPairsShared<FoldMemory>& shared,
                                           const EvenPairsLaunch& launch, int number) {
  with_even_pairs_task(team, shared, launch, number, /*is_wide=*/false,
                       [&](const EvenPairsTask& task, QueryTable table) {
                         fold_evaluate_block(team, shared.task,
                                             fold_task(shared.group, task.index, table),
                                             launch.memory.evaluations + number);
                       });
}

template <Team T>
PAPERLAB_HD void even_pairs_wide_block(T& team, EvenPairsShared<WideMemory>& shared,
                                       const EvenPairsLaunch& launch, int number) {
  with_even_pairs_task(
      team, shared, launch, number, /*is_wide=*/true, [&](const EvenPairsTask& task, QueryTable) {
        wide_block(team, shared.task, wide_task(shared.group, task.index, launch.parameters),
                   launch.memory.marginals + task.marginals);
      });
}

template <Team T>
PAPERLAB_HD void even_pairs_wide_evaluate_block(T& team, EvenPairsShared<WideMemory>& shared,
                                                const EvenPairsLaunch& launch, int number) {
  with_even_pairs_task(team, shared, launch, number, /*is_wide=*/true,
                       [&](const EvenPairsTask& task, QueryTable) {
                         wide_evaluate_block(team, shared.task,
                                             wide_task(shared.group, task.index, launch.parameters),
                                             launch.memory.evaluations + number);
                       });
}

// Sums of one query's tasks: its column of w's gradient, its part of u's.
template <Team T>
PAPERLAB_HD void sum_even_pairs(T& team, QuerySums& sums, const EvenPairsLaunch& launch, int column,
                                double* gradient_w) {
  sum_query(team, sums, launch.memory.marginals, even_pairs_tasks(column), column / 2 + 1,
            launch.memory.table(column), launch.parameters,
            gradient_w + std::int64_t{2} * column * launch.parameters.max_length,
            launch.memory.parts_of_u + std::int64_t{column} * kTableSize);
}

}  // namespace paperlab::kernels
