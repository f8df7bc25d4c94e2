// The index arithmetic of the fold, exhaustively, and its GPU blocks run on the CPU.

#include "kernels/one_layer_fold/tile.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "kernels/one_layer_fold/block.h"
#include "kernels/one_layer_fold/one_layer_fold.h"
#include "paperlab/regular_language/dataset_internal.h"
#include "tests/support/error_measure.h"
#include "tests/support/exact_one_layer.h"
#include "tests/support/one_layer_emulation.h"
#include "tests/support/one_layer_inputs.h"

namespace paperlab::kernels {
namespace {

using test::OneLayerCase;
using test::OneLayerInputs;

constexpr int kMaxBits = kMaxStringLength - 1;

constexpr bool shape_is_whole(int num_bits) {
  const FoldShape shape = tile_shape(num_bits);
  return shape.row_bits >= 0 && shape.column_bits >= 0 &&
         shape.row_bits + shape.column_bits == num_bits && num_columns(shape) <= kItems &&
         (num_bits == 0 || shape.row_bits >= 1);
}

constexpr bool tasks_cover_rows(int num_bits) {
  const FoldShape shape = tile_shape(num_bits);
  int next = 0;
  for (int task = 0; task < num_tasks(num_bits); ++task) {
    const RowRange rows = task_rows(shape, task);
    const bool is_full = rows.end - rows.begin == kTaskRows || rows.end == num_rows(shape);
    const bool is_even = num_bits == 0 || (rows.begin % 2 == 0 && rows.end % 2 == 0);
    if (rows.begin != next || rows.end <= rows.begin || !is_full || !is_even) {
      return false;
    }
    next = rows.end;
  }
  return next == num_rows(shape);
}

constexpr bool holds_for_all_bits(bool (*holds)(int)) {
  for (int num_bits = 0; num_bits <= kMaxBits; ++num_bits) {
    if (!holds(num_bits)) {
      return false;
    }
  }
  return true;
}

// The largest groups have too many tasks for the compiler's limit on constant evaluation.
static_assert(holds_for_all_bits(shape_is_whole));

TEST(FoldTileTest, TasksCoverEveryRowOnceForEachNumberOfBits) {
  for (int num_bits = 0; num_bits <= kMaxBits; ++num_bits) {
    EXPECT_TRUE(tasks_cover_rows(num_bits)) << num_bits;
  }
}

std::vector<AffineGroup> chain_groups(int base_length) {
  regular_language::TrainOptions options;
  options.task = regular_language::Task::kParityCot;
  options.base_length = base_length;
  options.max_length = 2 * base_length - 2;
  return regular_language::affine_groups(options);
}

std::vector<std::vector<AffineGroup>> all_families() {
  std::vector<std::vector<AffineGroup>> families = {test::even_pairs_groups(12),
                                                    test::random_groups(12, 5)};
  for (int base_length = 2; base_length <= 8; ++base_length) {
    families.push_back(chain_groups(base_length));
  }
  families.push_back(chain_groups(13));  // cut chains
  return families;
}

std::uint32_t string_of(const AffineGroup& group, std::uint32_t i) {
  std::uint32_t word = 0;
  for (int l = 0; l < group.length; ++l) {
    word |= static_cast<std::uint32_t>(affine_token(group, l, i)) << static_cast<unsigned>(l);
  }
  return word;
}

TEST(FoldTileTest, EveryStringIsVisitedOnceWithItsTokens) {
  for (const auto& family : all_families()) {
    for (const AffineGroup& group : family) {
      const FoldShape shape = tile_shape(group.num_bits);
      std::vector<int> visits(std::size_t{1} << static_cast<unsigned>(group.num_bits));
      int wrong = 0;
      for (int task = 0; task < num_tasks(group.num_bits); ++task) {
        const RowRange rows = task_rows(shape, task);
        for (int row = rows.begin; row < rows.end; ++row) {
          for (int column = 0; column < num_columns(shape); ++column) {
            const std::uint32_t i = string_index(shape, row, column);
            ++visits.at(i);
            const std::uint32_t of_row = row_word(group, shape, row);
            const std::uint32_t of_column = column_word(group, shape, column);
            wrong += (of_row | of_column) != string_of(group, i) || (of_row & of_column) != 0;
            wrong += affine_label(group, i) != (group.num_bits > 0 && row % 2 != 0 ? -1 : 1);
          }
        }
      }
      EXPECT_EQ(wrong, 0) << "length " << group.length;
      EXPECT_EQ(std::count(visits.begin(), visits.end(), 1), std::ssize(visits));
    }
  }
}

TEST(FoldTileTest, WordsAgreeWithTheTokensOfTheCpuKernel) {
  for (const AffineGroup& group : chain_groups(8)) {
    if (group.num_bits == 0) {
      continue;
    }
    const FoldShape shape = tile_shape(group.num_bits);
    const std::uint32_t of_columns = column_positions(group, shape);
    EXPECT_EQ(bit_of(of_columns, group.length - 1), 0);
    for (int l = 0; l + 1 < group.length; ++l) {
      for (int column = 0; column < num_columns(shape) && bit_of(of_columns, l) != 0; ++column) {
        const std::uint8_t lanes = column_tokens(group, shape, l, column / 8);
        EXPECT_EQ(bit_of(column_word(group, shape, column), l), bit_of(lanes, column % 8));
      }
      for (int row = 0; row < num_rows(shape) && bit_of(of_columns, l) == 0; ++row) {
        EXPECT_EQ(bit_of(row_word(group, shape, row), l), row_token(group, shape, l, row));
      }
    }
  }
}

TEST(OneLayerBlockTest, ThreadsOwnEachItemOnce) {
  std::set<int> items;
  for (int thread = 0; thread < kBlockThreads; ++thread) {
    for (int slot = 0; slot < kItemsPerThread; ++slot) {
      items.insert(item_of(thread, slot));
    }
  }
  EXPECT_EQ(std::ssize(items), kItems);
  EXPECT_EQ(*items.begin(), 0);
  EXPECT_EQ(*items.rbegin(), kItems - 1);
}

TEST(OneLayerBlockTest, EachLaneOwnsEachPositionOnce) {
  for (int lane = 0; lane < kWarp; ++lane) {
    std::multiset<int> positions;
    for (int warp = 0; warp < kWarps; ++warp) {
      for (int slot = 0; slot < kPositionsPerWarp; ++slot) {
        positions.insert(position_of(warp * kWarp + lane, slot));
      }
    }
    EXPECT_EQ(std::set<int>(positions.begin(), positions.end()).size(), positions.size());
    EXPECT_EQ(*positions.begin(), 0);
    EXPECT_LT(*positions.rbegin(), 32);  // a bit of the words
    EXPECT_GE(std::ssize(positions), kMaxStringLength);
  }
}

TEST(OneLayerBlockTest, OutputsNumberPositionsTokensAndSums) {
  std::set<int> outputs;
  for (int l = 0; l < kMaxStringLength; ++l) {
    for (int s = 0; s < 2; ++s) {
      for (int is_r = 0; is_r < 2; ++is_r) {
        const int output = output_index(l, s, is_r);
        outputs.insert(output);
        EXPECT_EQ(output / 4, l);
        EXPECT_EQ(output / 2, embedding_index(l, s));
        EXPECT_EQ(output % 2, is_r);
      }
    }
  }
  EXPECT_EQ(std::ssize(outputs), kNumOutputs);
}

// Shared memory has 16 banks of doubles; half a warp is served at once if no two of its threads
// read different words of one bank.
bool half_warps_are_free_of_conflicts(int num_threads, int (*index)(int thread)) {
  for (int first = 0; first < num_threads; first += 16) {
    std::set<int> banks;
    for (int thread = first; thread < std::min(first + 16, num_threads); ++thread) {
      banks.insert(index(thread) % 16);
    }
    if (std::ssize(banks) != std::min(16, num_threads - first)) {
      return false;
    }
  }
  return true;
}

TEST(OneLayerBlockTest, ThreadsThatAddUpReadDifferentBanks) {
  EXPECT_TRUE(half_warps_are_free_of_conflicts(kNumOutputs,
                                               [](int thread) { return lane_index(thread, 7); }));
  EXPECT_TRUE(half_warps_are_free_of_conflicts(kBlockThreads, [](int thread) {
    return row_index(thread / kRowParts, thread % kRowParts + 3 * kRowParts);
  }));
}

TEST(OneLayerBlockTest, RowPartsCoverEachThreadOnce) {
  std::set<int> read;
  for (int thread = 0; thread < kBlockThreads; ++thread) {
    for (int i = thread % kRowParts; i < kBlockThreads; i += kRowParts) {
      read.insert(row_index(thread / kRowParts, i));
    }
  }
  std::set<int> written;
  for (int thread = 0; thread < kBlockThreads; ++thread) {
    for (int row = 0; row < kChunkRows; ++row) {
      written.insert(row_index(row_value(row, 0), thread));
      written.insert(row_index(row_value(row, 1), thread));
    }
  }
  EXPECT_EQ(read, written);
  EXPECT_EQ(std::ssize(read), 2 * kChunkRows * kBlockThreads);
  EXPECT_LT(*read.rbegin(), 2 * kChunkRows * kRowStride);
}

// A block's shared memory without opting in to more.
static_assert(sizeof(FoldMemory) <= 49152);

std::vector<test::EmulatedTask> places(const FoldPlan& plan) {
  std::vector<test::EmulatedTask> all;
  for (const FoldPlan::Task& task : plan.tasks) {
    const AffineGroup& group = plan.groups[static_cast<std::size_t>(task.group)];
    all.push_back({group.length, group.query, static_cast<std::int64_t>(task.marginals)});
  }
  return all;
}

void emulate_fold(const FoldPlan& plan, const OneLayerParameters& parameters,
                  const OneLayerGradient& gradient, bool is_reversed = false) {
  const int longest = plan.groups.back().length;
  const test::EmulatedTables tables(parameters, longest);
  const double nan = std::numeric_limits<double>::quiet_NaN();
  std::vector<Marginal> marginals(plan.marginals.size(), {nan, nan});
  const auto memory = std::make_unique<FoldMemory>();
  for (const FoldPlan::Task& task : plan.tasks) {
    const AffineGroup& group = plan.groups[static_cast<std::size_t>(task.group)];
    HostTeam<FoldRegisters> team(kBlockThreads, is_reversed);
    std::memset(static_cast<void*>(memory.get()), 0xFF, sizeof(FoldMemory));
    fold_block(team, *memory, fold_task(group, task.index, tables.of(group.length, group.query)),
               marginals.data() + task.marginals);
  }
  test::emulate_sums(parameters, tables, longest, places(plan), marginals, gradient);
}

OneLayerEvaluation emulate_evaluate(const FoldPlan& plan, const OneLayerParameters& parameters) {
  const test::EmulatedTables tables(parameters, plan.groups.back().length);
  std::vector<EvaluationSum> parts;
  const auto memory = std::make_unique<FoldMemory>();
  for (const FoldPlan::Task& task : plan.tasks) {
    const AffineGroup& group = plan.groups[static_cast<std::size_t>(task.group)];
    HostTeam<FoldRegisters> team(kBlockThreads);
    parts.push_back(empty_evaluation());
    fold_evaluate_block(team, *memory,
                        fold_task(group, task.index, tables.of(group.length, group.query)),
                        &parts.back());
  }
  return test::emulate_evaluation(parts, plan.num_strings);
}

void expect_exact(const std::vector<AffineGroup>& groups, OneLayerCase of) {
  SCOPED_TRACE("length " + std::to_string(groups.back().length));
  of.max_length = std::max(of.max_length, groups.back().length);
  OneLayerInputs inputs(of);
  const auto strings = test::strings_of(groups);
  const test::ExactOneLayer exact = test::exact_one_layer(strings, inputs.parameters());
  const double bound =
      test::rounding_bound(exact, groups.back().length, static_cast<double>(strings.size()));
  const FoldPlan plan(groups);
  emulate_fold(plan, inputs.parameters(), inputs.gradient());
  EXPECT_TRUE(test::is_close(inputs.u_gradient, exact.u, exact.u_norm, bound));
  EXPECT_TRUE(test::is_close(inputs.w_gradient, exact.w, exact.w_norm, bound));
  const OneLayerEvaluation evaluation = emulate_evaluate(plan, inputs.parameters());
  EXPECT_TRUE(test::is_close(evaluation.loss, exact.loss, exact.loss_norm, bound));
  EXPECT_TRUE(test::is_close(evaluation.min_margin, exact.min_margin, exact.largest_u, bound));
  EXPECT_EQ(evaluation.num_correct, exact.num_correct);
  EXPECT_EQ(evaluation.num_strings, std::ssize(strings));
}

TEST(FoldBlockTest, EmulatedBlocksGiveTheExactGradientOfEvenPairs) {
  for (const int max_length : {1, 2, 3, 4, 6, 9, 12}) {
    expect_exact(test::even_pairs_groups(max_length), {});
  }
}

TEST(FoldBlockTest, EmulatedBlocksGiveTheExactGradientOfSeveralTasks) {
  expect_exact(test::with_uneven_weights(test::even_pairs_groups(15)), {.w_std = 2.0});
}

TEST(FoldBlockTest, EmulatedBlocksGiveTheExactGradientOfChains) {
  for (const int base_length : {2, 3, 4, 5, 8, 12}) {
    expect_exact(chain_groups(base_length), {});
  }
}

TEST(FoldBlockTest, EmulatedBlocksGiveTheExactGradientOfRandomMasks) {
  expect_exact(test::random_groups(12, 11), {});
}

TEST(FoldBlockTest, OrderOfThreadsWithinAPhaseDoesNotMatter) {
  OneLayerInputs forward({.max_length = 14});
  OneLayerInputs reversed({.max_length = 14});
  const FoldPlan plan(test::even_pairs_groups(14));
  emulate_fold(plan, forward.parameters(), forward.gradient());
  emulate_fold(plan, reversed.parameters(), reversed.gradient(), /*is_reversed=*/true);
  EXPECT_TRUE(test::has_same_bits(forward.u_gradient, reversed.u_gradient));
  EXPECT_TRUE(test::has_same_bits(forward.w_gradient, reversed.w_gradient));
}

TEST(FoldBlockTest, EntriesBeyondThePlanAreZero) {
  expect_exact(test::even_pairs_groups(3), {.max_length = 40});
}

TEST(FoldBlockTest, GradientOfAChainAloneIsExactlyZeroAtTheOrigin) {
  std::vector<AffineGroup> groups = chain_groups(6);
  std::erase_if(groups, [](const AffineGroup& group) { return group.length < 6; });
  OneLayerInputs inputs({.max_length = 10, .u_std = 0.0, .w_std = 0.0});
  emulate_fold(FoldPlan(groups), inputs.parameters(), inputs.gradient());
  EXPECT_EQ(std::count(inputs.u_gradient.begin(), inputs.u_gradient.end(), 0.0),
            std::ssize(inputs.u_gradient));
  EXPECT_EQ(std::count(inputs.w_gradient.begin(), inputs.w_gradient.end(), 0.0),
            std::ssize(inputs.w_gradient));
}

}  // namespace
}  // namespace paperlab::kernels
