#pragma once
// One task of the loop on one block of GPU threads (host-device; see
// common/cuda/one_layer_block.h): chunks of 512 strings, four a thread. A string is one word: bit l
// its token at position l, bit 31 set if y = -1.

#include <algorithm>
#include <vector>

#include "kernels/common/cuda/one_layer_block.h"
#include "kernels/one_layer_loop/one_layer_loop.h"

namespace paperlab::kernels {

constexpr int kLabelBit = 31;
static_assert(kMaxStringLength <= kLabelBit);

// The word of a string of a block of eight (PackedStrings): `tokens` [length - 1] and `negative`
// hold one bit a string.
PAPERLAB_HD inline std::uint32_t string_word(const std::uint8_t* tokens, std::uint8_t negative,
                                             int length, int query, int lane) {
  auto word = static_cast<std::uint32_t>(query) << static_cast<unsigned>(length - 1);
  for (int l = 0; l + 1 < length; ++l) {
    word |= static_cast<std::uint32_t>(bit_of(tokens[l], lane)) << static_cast<unsigned>(l);
  }
  return word | static_cast<std::uint32_t>(bit_of(negative, lane)) << kLabelBit;
}

PAPERLAB_HD constexpr double word_label(std::uint32_t word) {
  return bit_of(word, kLabelBit) != 0 ? -1.0 : 1.0;
}

struct LoopTask {
  int length;
  int query;
  double weight;
  std::int64_t first;  // place of the first word
  std::int64_t count;
  std::int64_t marginals;  // place of the results [2 length]
};

// The words of all groups, one after the other.
inline std::vector<std::uint32_t> loop_words(const LoopPlan& plan) {
  std::vector<std::uint32_t> words;
  for (const PackedStrings& group : plan.groups) {
    for (std::int64_t i = 0; i < group.num_strings; ++i) {
      const std::int64_t block = i / kStringsPerBlock;
      words.push_back(string_word(group.tokens.data() + block * (group.length - 1),
                                  group.negative[static_cast<std::size_t>(block)], group.length,
                                  group.query, static_cast<int>(i % kStringsPerBlock)));
    }
  }
  return words;
}

// The plan's tasks, with places in loop_words.
inline std::vector<LoopTask> loop_tasks(const LoopPlan& plan) {
  std::vector<std::int64_t> first_word = {0};
  for (const PackedStrings& group : plan.groups) {
    first_word.push_back(first_word.back() + group.num_strings);
  }
  std::vector<LoopTask> tasks;
  for (const LoopPlan::Task& task : plan.tasks) {
    const auto g = static_cast<std::size_t>(task.group);
    const PackedStrings& group = plan.groups[g];
    const std::int64_t first = task.first_block * kStringsPerBlock;
    const std::int64_t end = std::min(task.end_block * kStringsPerBlock, group.num_strings);
    tasks.push_back({group.length, group.query, group.weight, first_word[g] + first, end - first,
                     static_cast<std::int64_t>(task.marginals)});
  }
  return tasks;
}

struct LoopMemory {
  double e[kTableSize];
  double eu[kTableSize];
  union {  // one after the other
    Items items;
    double lanes[kNumOutputs * kLaneStride];
    EvaluationSum evaluations[kBlockThreads];
  };
};

struct LoopRegisters {
  PositionSums by_position;
};

template <Team T>
PAPERLAB_HD void begin_loop(T& team, LoopMemory& memory, int length, QueryTable table) {
  team.each([&](int thread, auto&) {
    if (thread < 2 * length) {
      memory.e[thread] = table.e[thread];
      memory.eu[thread] = table.eu[thread];
    }
  });
}

// Writes the marginals [2 L] of the task's strings, whose words start at `words`.
template <Team T>
PAPERLAB_HD void loop_block(T& team, LoopMemory& memory, const LoopTask& task,
                            const std::uint32_t* words, QueryTable table, Marginal* out) {
  begin_loop(team, memory, task.length, table);
  const QueryTable own_table{memory.e, memory.eu};
  const std::uint32_t positions = all_positions(task.length);
  team.each([&](int, LoopRegisters& own) { clear(own.by_position); });
  for (std::int64_t first = 0; first < task.count; first += kItems) {
    const int count = task.count - first < kItems ? static_cast<int>(task.count - first) : kItems;
    team.each([&](int thread, auto&) {
      PAPERLAB_UNROLL
      for (int slot = 0; slot < kItemsPerThread; ++slot) {
        const int item = item_of(thread, slot);
        if (first + item < task.count) {
          const std::uint32_t word = words[first + item];
          const ScorePart part = score_part(own_table, task.length, positions, word);
          const Marginal m = string_marginal(part.z, part.n, word_label(word), task.weight);
          memory.items.q[item] = m.q;
          memory.items.r[item] = m.r;
          memory.items.word[item] = word;
        }
      }
    });
    team.each([&](int thread, LoopRegisters& own) {
      add_items(thread, memory.items, count, positions, own.by_position);
    });
  }
  team.each([&](int thread, LoopRegisters& own) {
    store_lanes(thread, positions, own.by_position, memory.lanes);
  });
  team.each([&](int thread, auto&) {
    if (thread < 4 * task.length) {
      write_output(out, thread, sum_lanes(memory.lanes, thread));
    }
  });
}

// Writes the loss, smallest margin and number of correct strings of the task.
template <Team T>
PAPERLAB_HD void loop_evaluate_block(T& team, LoopMemory& memory, const LoopTask& task,
                                     const std::uint32_t* words, QueryTable table,
                                     EvaluationSum* out) {
  begin_loop(team, memory, task.length, table);
  const QueryTable own_table{memory.e, memory.eu};
  team.each([&](int thread, auto&) {
    EvaluationSum sum = empty_evaluation();
    for (std::int64_t i = thread; i < task.count; i += kBlockThreads) {
      const std::uint32_t word = words[i];
      const ScorePart part = score_part(own_table, task.length, all_positions(task.length), word);
      add_margin(word_label(word) * (part.n / part.z), task.weight, sum);
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
