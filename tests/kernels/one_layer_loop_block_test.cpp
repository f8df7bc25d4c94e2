// The packing of the loop's strings for the GPU, and its blocks run on the CPU.

#include "kernels/one_layer_loop/block.h"

#include <gtest/gtest.h>

#include <cstring>
#include <limits>
#include <memory>
#include <vector>

#include "kernels/one_layer_loop/one_layer_loop.h"
#include "paperlab/core/rng.h"
#include "tests/support/error_measure.h"
#include "tests/support/exact_one_layer.h"
#include "tests/support/one_layer_emulation.h"
#include "tests/support/one_layer_inputs.h"

namespace paperlab::kernels {
namespace {

// `count` strings of a length and last token with random other tokens and labels.
struct RandomStrings {
  std::vector<std::uint8_t> tokens;
  std::vector<std::int8_t> labels;
  int length;
  int query;

  RandomStrings(int count, int of_length, int of_query) : length(of_length), query(of_query) {
    for (int n = 0; n < count; ++n) {
      for (int l = 0; l < length; ++l) {
        const auto at = static_cast<std::uint64_t>(n) * 64 + static_cast<std::uint64_t>(l);
        tokens.push_back(static_cast<std::uint8_t>(l + 1 == length                 ? query
                                                   : philox_normal(3, 0, at) > 0.0 ? 1
                                                                                   : 0));
      }
      labels.push_back(philox_normal(3, 1, static_cast<std::uint64_t>(n)) > 0.0 ? 1 : -1);
    }
  }

  PackedStrings packed(double weight) const {
    return pack_strings(tokens, labels, length, query, weight);
  }
  std::vector<test::WeightedString> listed(double weight) const {
    std::vector<test::WeightedString> all;
    for (std::size_t n = 0; n < labels.size(); ++n) {
      const auto first = tokens.begin() + static_cast<std::ptrdiff_t>(n) * length;
      all.push_back({{first, first + length}, labels[n], weight});
    }
    return all;
  }
};

TEST(LoopBlockTest, WordHoldsTokensAndLabelOfEachByteAndLane) {
  for (int value = 0; value < 256; ++value) {
    for (int lane = 0; lane < kStringsPerBlock; ++lane) {
      for (const int length : {1, 2, 5, kMaxStringLength}) {
        std::vector<std::uint8_t> tokens(static_cast<std::size_t>(length - 1));
        for (std::size_t l = 0; l < tokens.size(); ++l) {
          tokens[l] = static_cast<std::uint8_t>(value ^ static_cast<int>(l * 37));
        }
        const auto negative = static_cast<std::uint8_t>(~value);
        const int query = value % 2;
        const std::uint32_t word = string_word(tokens.data(), negative, length, query, lane);
        for (std::size_t l = 0; l < tokens.size(); ++l) {
          EXPECT_EQ(bit_of(word, static_cast<int>(l)), (tokens[l] >> lane) & 1);
        }
        EXPECT_EQ(bit_of(word, length - 1), query);
        EXPECT_EQ(word_label(word), ((negative >> lane) & 1) != 0 ? -1.0 : 1.0);
        EXPECT_EQ(word & ~all_positions(length) & ~(1U << kLabelBit), 0U);
      }
    }
  }
}

TEST(LoopBlockTest, TasksCoverTheWordsOfEachGroupOnce) {
  const LoopPlan plan({RandomStrings(9, 3, 0).packed(1.0), RandomStrings(20000, 7, 1).packed(1.0),
                       RandomStrings(1, 1, 1).packed(1.0)});
  const std::vector<LoopTask> tasks = loop_tasks(plan);
  EXPECT_EQ(tasks.size(), plan.tasks.size());
  std::int64_t next = 0;
  for (const LoopTask& task : tasks) {
    EXPECT_EQ(task.first, next);
    EXPECT_GT(task.count, 0);
    next += task.count;
  }
  EXPECT_EQ(next, 20010);
  EXPECT_EQ(std::ssize(loop_words(plan)), next);
}

struct Emulated {
  test::OneLayerInputs inputs;
  OneLayerEvaluation evaluation;
};

Emulated emulate(const LoopPlan& plan, const test::OneLayerCase& of, int longest,
                 bool is_reversed = false) {
  Emulated out{test::OneLayerInputs(of), {}};
  const test::EmulatedTables tables(out.inputs.parameters(), longest);
  const std::vector<std::uint32_t> words = loop_words(plan);
  const double nan = std::numeric_limits<double>::quiet_NaN();
  std::vector<Marginal> marginals(plan.marginals.size(), {nan, nan});
  std::vector<test::EmulatedTask> places;
  std::vector<EvaluationSum> parts;
  std::int64_t num_strings = 0;
  const auto memory = std::make_unique<LoopMemory>();
  for (const LoopTask& task : loop_tasks(plan)) {
    HostTeam<LoopRegisters> team(kBlockThreads, is_reversed);
    std::memset(static_cast<void*>(memory.get()), 0xFF, sizeof(LoopMemory));
    const QueryTable table = tables.of(task.length, task.query);
    loop_block(team, *memory, task, words.data() + task.first, table,
               marginals.data() + task.marginals);
    parts.push_back(empty_evaluation());
    loop_evaluate_block(team, *memory, task, words.data() + task.first, table, &parts.back());
    places.push_back({task.length, task.query, task.marginals});
    num_strings += task.count;
  }
  test::emulate_sums(out.inputs.parameters(), tables, longest, places, marginals,
                     out.inputs.gradient());
  out.evaluation = test::emulate_evaluation(parts, num_strings);
  return out;
}

TEST(LoopBlockTest, EmulatedBlocksGiveTheExactGradient) {
  const std::vector<RandomStrings> groups = {RandomStrings(1, 1, 0),     RandomStrings(7, 2, 1),
                                             RandomStrings(511, 6, 0),   RandomStrings(513, 9, 1),
                                             RandomStrings(8200, 20, 0), RandomStrings(3, 30, 1)};
  std::vector<PackedStrings> packed;
  std::vector<test::WeightedString> listed;
  for (std::size_t g = 0; g < groups.size(); ++g) {
    const double weight = 0.25 / static_cast<double>(g + 1);
    packed.push_back(groups[g].packed(weight));
    const auto more = groups[g].listed(weight);
    listed.insert(listed.end(), more.begin(), more.end());
  }
  const Emulated actual = emulate(LoopPlan(packed), {.max_length = 31}, 30);
  const auto exact = test::exact_one_layer(listed, actual.inputs.parameters());
  const double bound = test::rounding_bound(exact, 30, static_cast<double>(listed.size()));
  EXPECT_TRUE(test::is_close(actual.inputs.u_gradient, exact.u, exact.u_norm, bound));
  EXPECT_TRUE(test::is_close(actual.inputs.w_gradient, exact.w, exact.w_norm, bound));
  EXPECT_TRUE(test::is_close(actual.evaluation.loss, exact.loss, exact.loss_norm, bound));
  EXPECT_TRUE(
      test::is_close(actual.evaluation.min_margin, exact.min_margin, exact.largest_u, bound));
  EXPECT_EQ(actual.evaluation.num_correct, exact.num_correct);
  EXPECT_EQ(actual.evaluation.num_strings, std::ssize(listed));
}

TEST(LoopBlockTest, OrderOfThreadsWithinAPhaseDoesNotMatter) {
  const LoopPlan plan({RandomStrings(9000, 12, 1).packed(1.0)});
  const Emulated forward = emulate(plan, {.max_length = 12}, 12);
  const Emulated reversed = emulate(plan, {.max_length = 12}, 12, /*is_reversed=*/true);
  EXPECT_TRUE(test::has_same_bits(forward.inputs.u_gradient, reversed.inputs.u_gradient));
  EXPECT_TRUE(test::has_same_bits(forward.inputs.w_gradient, reversed.inputs.w_gradient));
}

// A block's shared memory without opting in to more.
static_assert(sizeof(LoopMemory) <= 49152);

}  // namespace
}  // namespace paperlab::kernels
