// Even pairs without a plan, as the GPU computes them: the arithmetic of tasks against the CPU's
// plan, and all blocks run on the CPU.

#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <vector>

#include "kernels/one_layer_fold/block_even_pairs.h"
#include "kernels/one_layer_fold/one_layer_fold.h"
#include "tests/support/cuda_emulation.h"
#include "tests/support/error_measure.h"
#include "tests/support/exact_one_layer.h"
#include "tests/support/one_layer_emulation.h"
#include "tests/support/one_layer_inputs.h"

namespace paperlab::kernels {
namespace {

using test::OneLayerInputs;

// A block's shared memory without opting in to more.
static_assert(sizeof(EvenPairsShared<FoldMemory>) <= 49152);
static_assert(sizeof(EvenPairsShared<WideMemory>) <= 49152);

TEST(EvenPairsTileTest, TasksAreThoseOfTheCpusPlan) {
  for (const int max_length : {1, 2, 3, 12, 17}) {
    const FoldPlan plan(test::even_pairs_groups(max_length));
    ASSERT_EQ(num_even_pairs_tasks(max_length), std::ssize(plan.tasks));
    for (std::size_t i = 0; i < plan.tasks.size(); ++i) {
      const EvenPairsTask task = even_pairs_task(static_cast<int>(i));
      const AffineGroup& group = plan.groups[static_cast<std::size_t>(plan.tasks[i].group)];
      ASSERT_EQ(task.length, group.length);
      ASSERT_EQ(task.query, group.query);
      ASSERT_EQ(task.index, plan.tasks[i].index);
      ASSERT_EQ(task.marginals, static_cast<std::int64_t>(plan.tasks[i].marginals));
    }
    EXPECT_EQ(even_pairs_tasks(2 * max_length).first, std::ssize(plan.marginals));
  }
}

TEST(EvenPairsTileTest, AQuerysTasksAreThoseThatTheBlocksHave) {
  int number = 0;
  for (int column = 0; column < 2 * 20; ++column) {
    const EvenPairsTasks tasks = even_pairs_tasks(column);
    for (int i = 0; i < tasks.count; ++i) {
      const EvenPairsTask task = even_pairs_task(number++);
      ASSERT_EQ(embedding_index(task.length - 1, task.query), column);
      ASSERT_EQ(task.marginals, tasks.place(i));
    }
  }
  EXPECT_EQ(number, num_even_pairs_tasks(20));
}

// The parts of the memory lie behind one another and end where it ends.
TEST(EvenPairsTileTest, TheMemoryIsWholeForEveryLength) {
  for (int max_length = 1; max_length <= kMaxStringLength; ++max_length) {
    alignas(8) std::byte first[1];
    const EvenPairsMemory memory = even_pairs_memory(max_length, first);
    const auto at = [&](const void* place) {
      return static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(place) -
                                       reinterpret_cast<std::uintptr_t>(first));
    };
    const std::int64_t table = std::int64_t{2} * max_length * kTableSize * 8;
    EXPECT_EQ(at(memory.e), 0);
    EXPECT_EQ(at(memory.eu), table);
    EXPECT_EQ(at(memory.parts_of_u), 2 * table);
    EXPECT_EQ(at(memory.marginals), 3 * table);
    EXPECT_EQ(at(memory.evaluations), 3 * table + even_pairs_tasks(2 * max_length).first * 16);
    EXPECT_EQ(at(memory.is_wide), at(memory.evaluations) + num_even_pairs_tasks(max_length) *
                                                               std::int64_t{sizeof(EvaluationSum)});
    EXPECT_EQ(even_pairs_bytes(max_length), at(memory.is_wide) + std::int64_t{8} * max_length);
    EXPECT_EQ(even_pairs_bytes(max_length) % 8, 0);
  }
  EXPECT_LT(even_pairs_bytes(24), std::int64_t{2} << 20);  // the operator's longest
}

// --- the blocks ---------------------------------------------------------------------------------

// Every launch of a gradient or an evaluation, in memory that starts as NaN.
class Emulation {
 public:
  Emulation(const OneLayerParameters& parameters, bool is_reversed)
      : memory_(static_cast<std::size_t>(even_pairs_bytes(parameters.max_length) / 8)),
        launch_{parameters, even_pairs_memory(parameters.max_length, memory_.data())},
        is_reversed_(is_reversed) {
    std::memset(memory_.data(), 0xFF, memory_.size() * sizeof(double));
    for (int column = 0; column < num_columns(); ++column) {
      for (int i = 0; i < kSumEntries; ++i) {
        write_table(launch_, column, i);
      }
    }
  }

  int num_wide() const {
    int count = 0;
    for (int column = 0; column < num_columns(); ++column) {
      count += launch_.memory.is_wide[column];
    }
    return count;
  }

  void gradient(const OneLayerGradient& to) const {
    for_tasks<FoldRegisters, FoldMemory>([&](auto& team, auto& memory, int number) {
      even_pairs_block(team, memory, launch_, number);
    });
    for_tasks<WideRegisters, WideMemory>([&](auto& team, auto& memory, int number) {
      even_pairs_wide_block(team, memory, launch_, number);
    });
    test::emulate_blocks<NoRegisters, QuerySums>(
        num_columns(), kSumThreads, is_reversed_,
        [&](auto& team, QuerySums& sums, std::int64_t column) {
          sum_even_pairs(team, sums, launch_, static_cast<int>(column), to.w);
        });
    for (int i = 0; i < num_columns(); ++i) {
      to.u[i] = sum_u_gradient(launch_.memory.parts_of_u, launch_.parameters.max_length, i);
    }
  }

  OneLayerEvaluation evaluate() const {
    for_tasks<FoldRegisters, FoldMemory>([&](auto& team, auto& memory, int number) {
      even_pairs_evaluate_block(team, memory, launch_, number);
    });
    for_tasks<WideRegisters, WideMemory>([&](auto& team, auto& memory, int number) {
      even_pairs_wide_evaluate_block(team, memory, launch_, number);
    });
    const int max_length = launch_.parameters.max_length;
    return test::emulate_evaluation(
        {launch_.memory.evaluations, static_cast<std::size_t>(num_even_pairs_tasks(max_length))},
        (std::int64_t{2} << max_length) - 2);
  }

 private:
  int num_columns() const { return 2 * launch_.parameters.max_length; }

  template <class Registers, class Memory, class Body>
  void for_tasks(Body body) const {
    test::emulate_blocks<Registers, EvenPairsShared<Memory>>(
        num_even_pairs_tasks(launch_.parameters.max_length), kBlockThreads, is_reversed_,
        [&](auto& team, auto& memory, std::int64_t number) {
          body(team, memory, static_cast<int>(number));
        });
  }

  std::vector<double> memory_;
  EvenPairsLaunch launch_;
  bool is_reversed_;
};

void expect_exact(OneLayerInputs inputs, int num_wide) {
  const OneLayerParameters parameters = inputs.parameters();
  SCOPED_TRACE("length " + std::to_string(parameters.max_length));
  const auto strings = test::strings_of(test::even_pairs_groups(parameters.max_length));
  const test::ExactOneLayer exact = test::exact_one_layer(strings, parameters);
  const double bound =
      test::rounding_bound(exact, parameters.max_length, static_cast<double>(strings.size()));
  const Emulation emulation(parameters, /*is_reversed=*/num_wide % 2 == 1);
  EXPECT_EQ(emulation.num_wide(), num_wide);
  emulation.gradient(inputs.gradient());
  EXPECT_TRUE(test::is_close(inputs.u_gradient, exact.u, exact.u_norm, bound));
  EXPECT_TRUE(test::is_close(inputs.w_gradient, exact.w, exact.w_norm, bound));
  const OneLayerEvaluation evaluation = emulation.evaluate();
  EXPECT_TRUE(test::is_close(evaluation.loss, exact.loss, exact.loss_norm, bound));
  EXPECT_TRUE(test::is_close(evaluation.min_margin, exact.min_margin, exact.largest_u, bound));
  EXPECT_EQ(evaluation.num_correct, exact.num_correct);
  EXPECT_EQ(evaluation.num_strings, std::ssize(strings));
}

TEST(EvenPairsBlockTest, GiveTheExactLossAndGradient) {
  for (const int max_length : {1, 2, 3, 5, 8, 12}) {
    expect_exact(OneLayerInputs({.max_length = max_length}), 0);
  }
  expect_exact(OneLayerInputs({.max_length = 7, .w_std = 20.0, .attention_scale = 0.5}), 0);
}

// Two queries of which one has a string whose exponentials relative to all keys would all vanish.
TEST(EvenPairsBlockTest, LogitsFarApartAreServedByTheirStrings) {
  for (const int max_length : {6, 16}) {  // 16: several tasks, of several chunks
    OneLayerInputs inputs({.max_length = max_length});
    const auto width = std::size_t{2} * static_cast<std::size_t>(max_length);
    const std::size_t query = width * (width - 3);
    for (std::size_t key = 0; key < width; key += 2) {
      inputs.w[query + key] += 4000.0;
    }
    inputs.w[width * 7] -= 3000.0;
    expect_exact(inputs, 2);
  }
}

TEST(EvenPairsBlockTest, AllQueriesMayBeWide) {
  OneLayerInputs inputs({.max_length = 5, .w_std = 1e6});
  const Emulation emulation(inputs.parameters(), false);
  EXPECT_EQ(emulation.num_wide(), 8);  // a string of one token has one key
  expect_exact(inputs, 8);
}

TEST(EvenPairsBlockTest, DifferencesThatOverflowAreWide) {
  OneLayerInputs inputs({.max_length = 3, .w_std = 0.0});
  inputs.w[24] = 1.7e308;  // keys 0 and 1 of query (3, 0)
  inputs.w[25] = -1.7e308;
  const Emulation emulation(inputs.parameters(), false);
  EXPECT_EQ(emulation.num_wide(), 1);
  emulation.gradient(inputs.gradient());
  const OneLayerEvaluation evaluation = emulation.evaluate();
  EXPECT_TRUE(std::isfinite(evaluation.loss));
  for (const std::vector<double>* gradient : {&inputs.u_gradient, &inputs.w_gradient}) {
    for (const double x : *gradient) {
      EXPECT_TRUE(std::isfinite(x));
    }
  }
}

TEST(EvenPairsBlockTest, OrderOfThreadsAndBlocksDoesNotMatter) {
  for (const double w_std : {1.0, 1e4}) {
    OneLayerInputs forward({.max_length = 13, .w_std = w_std});
    OneLayerInputs reversed = forward;
    const Emulation one(forward.parameters(), false);
    one.gradient(forward.gradient());
    const Emulation other(reversed.parameters(), true);
    other.gradient(reversed.gradient());
    EXPECT_TRUE(test::has_same_bits(forward.u_gradient, reversed.u_gradient));
    EXPECT_TRUE(test::has_same_bits(forward.w_gradient, reversed.w_gradient));
    EXPECT_EQ(one.evaluate().loss, other.evaluate().loss);
  }
}

// The same tasks, tables and sums as those of the plan that training uses.
TEST(EvenPairsBlockTest, GradientIsExactlyZeroWhereTheLabelsBalance) {
  OneLayerInputs inputs({.max_length = 9, .u_std = 0.0, .w_std = 0.0});
  const Emulation emulation(inputs.parameters(), false);
  emulation.gradient(inputs.gradient());
  for (std::size_t i = 2; i < inputs.u_gradient.size(); ++i) {  // one token has one label
    EXPECT_EQ(inputs.u_gradient[i], 0.0) << i;
  }
}

}  // namespace
}  // namespace paperlab::kernels
