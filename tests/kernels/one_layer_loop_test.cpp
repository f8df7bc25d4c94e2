#include "kernels/one_layer_loop/one_layer_loop.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "kernels/one_layer_fold/one_layer_fold.h"
#include "paperlab/core/error.h"
#include "paperlab/core/rng.h"
#include "paperlab/regular_language/dataset_internal.h"
#include "paperlab/regular_language/model.h"
#include "tests/support/allocation_count.h"
#include "tests/support/error_measure.h"
#include "tests/support/exact_one_layer.h"
#include "tests/support/isa.h"
#include "tests/support/one_layer_inputs.h"

namespace paperlab::kernels {
namespace {

using regular_language::Task;
using test::OneLayerInputs;
using test::WeightedString;

// Random strings with random labels; nothing about them is exhaustive or balanced.
struct StringList {
  StringList(int length, int query, int count, double weight, std::uint64_t seed) {
    std::vector<std::uint8_t> tokens;
    std::vector<std::int8_t> labels;
    for (int n = 0; n < count; ++n) {
      const auto element = static_cast<std::uint64_t>(n);
      const PhiloxBlock random = philox_block(seed, static_cast<std::uint64_t>(length), element);
      WeightedString string{{}, random.word[1] % 3 == 0 ? -1 : 1, weight};
      for (int l = 0; l + 1 < length; ++l) {
        string.tokens.push_back((random.word[0] >> static_cast<unsigned>(l)) & 1U);
      }
      string.tokens.push_back(static_cast<std::uint8_t>(query));
      tokens.insert(tokens.end(), string.tokens.begin(), string.tokens.end());
      labels.push_back(static_cast<std::int8_t>(string.label));
      strings.push_back(std::move(string));
    }
    packed = pack_strings(tokens, labels, length, query, weight);
  }

  PackedStrings packed;
  std::vector<WeightedString> strings;
};

struct Problem {
  void add(const StringList& list) {
    groups.push_back(list.packed);
    strings.insert(strings.end(), list.strings.begin(), list.strings.end());
    max_length = std::max(max_length, list.packed.length);
  }

  std::vector<PackedStrings> groups;
  std::vector<WeightedString> strings;
  int max_length = 0;
};

// Lists of `count` strings for both last tokens and each length, with a weight of its own each.
Problem problem_of(int count, int max_length) {
  Problem problem;
  for (int length = 1; length <= max_length; ++length) {
    for (int query = 0; query < 2; ++query) {
      const double weight = (0.5 + 0.1 * length + 0.03 * query) / count;
      problem.add(StringList(length, query, count, weight, 40 + static_cast<unsigned>(query)));
    }
  }
  return problem;
}

Problem training_problem(Task task, int max_length, int base_length) {
  regular_language::TrainOptions options;
  options.task = task;
  options.max_length = max_length;
  options.base_length = base_length;
  Problem problem{regular_language::packed_strings(options), {}, max_length};
  for (const auto& string : regular_language::training_strings(options)) {
    problem.strings.push_back({string.tokens, string.label, string.weight});
  }
  return problem;
}

void expect_close(const OneLayerInputs& inputs, const test::ExactOneLayer& exact, double bound) {
  EXPECT_TRUE(test::is_close(inputs.u_gradient, exact.u, exact.u_norm, bound));
  EXPECT_TRUE(test::is_close(inputs.w_gradient, exact.w, exact.w_norm, bound));
}

void expect_evaluation(const OneLayerEvaluation& actual, const test::ExactOneLayer& exact,
                       double bound, const Problem& problem) {
  EXPECT_TRUE(test::is_close(actual.loss, exact.loss, exact.loss_norm, bound));
  EXPECT_TRUE(test::is_close(actual.min_margin, exact.min_margin, exact.largest_u, bound));
  EXPECT_EQ(actual.num_correct, exact.num_correct);
  EXPECT_EQ(actual.num_strings, std::ssize(problem.strings));
}

void expect_kernel_and_reference(const Problem& problem, OneLayerInputs& inputs) {
  const test::ExactOneLayer exact = test::exact_one_layer(problem.strings, inputs.parameters());
  const double bound =
      test::rounding_bound(exact, problem.max_length, static_cast<double>(problem.strings.size()));
  LoopPlan plan(problem.groups);
  one_layer_loop(plan, inputs.parameters(), inputs.gradient(), serial_executor());
  expect_close(inputs, exact, bound);
  expect_evaluation(one_layer_loop_evaluate(plan, inputs.parameters(), serial_executor()), exact,
                    bound, problem);
  const auto reference =
      one_layer_loop_reference(problem.groups, inputs.parameters(), inputs.gradient());
  expect_close(inputs, exact, bound);
  expect_evaluation(reference, exact, bound, problem);
}

class OneLayerLoopTest : public testing::TestWithParam<CpuIsa> {
 protected:
  void SetUp() override {
    if (!test::is_available(GetParam())) {
      GTEST_SKIP() << test::missing(GetParam());
    }
    isa_ = std::make_unique<test::ScopedIsa>(GetParam());
  }

 private:
  std::unique_ptr<test::ScopedIsa> isa_;
};

TEST_P(OneLayerLoopTest, AnyNumberOfStringsIsWithinRounding) {
  for (const int count : {1, 3, 7, 8, 9, 63, 65}) {
    SCOPED_TRACE(std::to_string(count) + " strings a list");
    OneLayerInputs inputs({.max_length = 12, .seed = static_cast<unsigned>(count)});
    expect_kernel_and_reference(problem_of(count, 12), inputs);
  }
}

TEST_P(OneLayerLoopTest, LongStringsAreWithinRounding) {
  Problem problem;
  problem.add(StringList(31, 1, 21, 0.3, 4));
  OneLayerInputs inputs({.max_length = 31});
  expect_kernel_and_reference(problem, inputs);
}

TEST_P(OneLayerLoopTest, TrainingStringsAreWithinRounding) {
  for (int length = 1; length <= 9; ++length) {
    OneLayerInputs inputs({.max_length = length});
    expect_kernel_and_reference(training_problem(Task::kEvenPairs, length, 4), inputs);
    expect_kernel_and_reference(training_problem(Task::kParity, length, 4), inputs);
  }
  for (int base_length = 2; base_length <= 7; ++base_length) {
    OneLayerInputs inputs({.max_length = 2 * base_length - 2});
    expect_kernel_and_reference(
        training_problem(Task::kParityCot, 2 * base_length - 2, base_length), inputs);
  }
}

TEST_P(OneLayerLoopTest, LargeLogitsAreWithinRounding) {
  for (const double w_std : {10.0, 100.0}) {
    OneLayerInputs inputs({.max_length = 9, .w_std = w_std, .attention_scale = 1.0});
    expect_kernel_and_reference(problem_of(33, 9), inputs);
  }
}

TEST_P(OneLayerLoopTest, ASpreadBeyondUnderflowGivesTheReferencesBits) {
  const Problem problem = problem_of(9, 7);
  OneLayerInputs inputs({.max_length = 7, .w_std = 1000.0, .attention_scale = 1.0});
  LoopPlan plan(problem.groups);
  one_layer_loop(plan, inputs.parameters(), inputs.gradient(), serial_executor());
  OneLayerInputs reference = inputs;
  const auto of_reference =
      one_layer_loop_reference(problem.groups, reference.parameters(), reference.gradient());
  EXPECT_TRUE(test::has_same_bits(inputs.u_gradient, reference.u_gradient));
  EXPECT_TRUE(test::has_same_bits(inputs.w_gradient, reference.w_gradient));
  EXPECT_EQ(one_layer_loop_evaluate(plan, inputs.parameters(), serial_executor()).loss,
            of_reference.loss);
  expect_kernel_and_reference(problem, inputs);
}

TEST_P(OneLayerLoopTest, BitsAreThoseOfTheGenericInstructionSet) {
  for (const int count : {3, 65}) {
    const Problem problem = problem_of(count, 12);
    OneLayerInputs inputs({.max_length = 12, .w_std = 3.0});
    LoopPlan plan(problem.groups);
    one_layer_loop(plan, inputs.parameters(), inputs.gradient(), serial_executor());
    const double loss = one_layer_loop_evaluate(plan, inputs.parameters(), serial_executor()).loss;
    OneLayerInputs generic = inputs;
    const test::ScopedIsa isa(CpuIsa::kGeneric);
    one_layer_loop(plan, generic.parameters(), generic.gradient(), serial_executor());
    EXPECT_TRUE(test::has_same_bits(inputs.u_gradient, generic.u_gradient));
    EXPECT_TRUE(test::has_same_bits(inputs.w_gradient, generic.w_gradient));
    EXPECT_EQ(loss, one_layer_loop_evaluate(plan, generic.parameters(), serial_executor()).loss);
  }
}

TEST_P(OneLayerLoopTest, BitsDoNotDependOnThreadsOrTheRun) {
  Problem problem;  // 8192 strings are a task
  problem.add(StringList(7, 0, 20001, 1.0 / 20001, 1));
  problem.add(StringList(9, 1, 8193, 1.0 / 8193, 2));
  OneLayerInputs inputs({.max_length = 9});
  LoopPlan serial(problem.groups);
  ASSERT_EQ(serial.tasks.size(), 5U);
  one_layer_loop(serial, inputs.parameters(), inputs.gradient(), serial_executor());
  const auto evaluation = one_layer_loop_evaluate(serial, inputs.parameters(), serial_executor());
  for (const int num_threads : {1, 2, 3}) {
    const ThreadPool pool(num_threads);
    LoopPlan plan(problem.groups);
    for (int run = 0; run < 3; ++run) {
      OneLayerInputs again = inputs;
      one_layer_loop(plan, again.parameters(), again.gradient(), pool);
      EXPECT_TRUE(test::has_same_bits(again.u_gradient, inputs.u_gradient));
      EXPECT_TRUE(test::has_same_bits(again.w_gradient, inputs.w_gradient));
      EXPECT_EQ(one_layer_loop_evaluate(plan, inputs.parameters(), pool).loss, evaluation.loss);
    }
  }
  OneLayerInputs again = inputs;
  expect_kernel_and_reference(problem, again);
}

// Both kernels are within rounding of the definition, so within twice that of one another.
TEST_P(OneLayerLoopTest, AgreesWithTheFoldOnExhaustiveStrings) {
  const Problem problem = training_problem(Task::kEvenPairs, 7, 4);
  OneLayerInputs inputs({.max_length = 7});
  LoopPlan loop(problem.groups);
  one_layer_loop(loop, inputs.parameters(), inputs.gradient(), serial_executor());
  const std::vector<double> of_loop = inputs.w_gradient;
  FoldPlan fold(test::even_pairs_groups(7));
  one_layer_fold(fold, inputs.parameters(), inputs.gradient(), serial_executor());
  const test::ExactOneLayer exact = test::exact_one_layer(problem.strings, inputs.parameters());
  const std::vector<long double> fold_gradient(inputs.w_gradient.begin(), inputs.w_gradient.end());
  EXPECT_TRUE(test::is_close(of_loop, fold_gradient, exact.w_norm,
                             2.0 * test::rounding_bound(exact, 7, 64.0)));
}

// Oracle: the log-loss stays finite at margins of +-800, and its derivative is 0 or -y.
TEST_P(OneLayerLoopTest, HugeScoresGiveFiniteLossAndGradient) {
  const std::vector<std::uint8_t> token = {0};
  for (const double u : {800.0, -800.0}) {
    for (const std::int8_t y : {std::int8_t{1}, std::int8_t{-1}}) {
      const std::vector<std::int8_t> label = {y};
      LoopPlan plan({pack_strings(token, label, 1, 0, 1.0)});
      OneLayerInputs inputs({.max_length = 1});
      inputs.u[0] = u;
      one_layer_loop(plan, inputs.parameters(), inputs.gradient(), serial_executor());
      EXPECT_EQ(inputs.u_gradient[0], y * u > 0.0 ? 0.0 : -y);
      EXPECT_EQ(inputs.u_gradient[1], 0.0);
      for (const double x : inputs.w_gradient) {
        EXPECT_EQ(x, 0.0);
      }
      EXPECT_EQ(one_layer_loop_evaluate(plan, inputs.parameters(), serial_executor()).loss,
                y * u > 0.0 ? 0.0 : 800.0);
    }
  }
}

TEST_P(OneLayerLoopTest, AStepAllocatesNothing) {
  if (!test::kCountsAllocations) {
    GTEST_SKIP() << "sanitizers have an operator new of their own";
  }
  Problem problem;
  problem.add(StringList(7, 0, 20001, 1.0 / 20001, 1));
  OneLayerInputs inputs({.max_length = 7});
  const OneLayerGradient gradient = inputs.gradient();
  for (const int num_threads : {1, 2}) {
    const ThreadPool pool(num_threads);
    LoopPlan plan(problem.groups);
    one_layer_loop(plan, inputs.parameters(), gradient, pool);  // sees the number of threads
    const test::Allocations before = test::allocations();
    one_layer_loop(plan, inputs.parameters(), gradient, pool);
    one_layer_loop_evaluate(plan, inputs.parameters(), pool);
    EXPECT_EQ(test::allocations().count, before.count);
  }
}

INSTANTIATE_TEST_SUITE_P(Isas, OneLayerLoopTest, testing::ValuesIn(test::all_isas()),
                         test::isa_name);

TEST(OneLayerLoopPlanTest, BadGroupsAreRefused) {
  EXPECT_THROW(LoopPlan({}), ValueError);
  const std::vector<std::uint8_t> token = {0};
  const std::vector<std::int8_t> label = {1};
  PackedStrings group = pack_strings(token, label, 1, 0, 1.0);
  group.num_strings = 0;
  try {
    const LoopPlan plan({group});
    ADD_FAILURE() << "no error";
  } catch (const ValueError& error) {
    EXPECT_STREQ(error.what(),
                 "one_layer_loop: every group must hold strings of at least one token, got 0 of "
                 "length 1");
  }
  group.num_strings = 1;
  group.length = 0;
  EXPECT_THROW(LoopPlan({group}), ValueError);
}

TEST(OneLayerLoopPlanTest, ParametersTooSmallAreRefusedAndOutputsStay) {
  LoopPlan plan(problem_of(3, 6).groups);
  OneLayerInputs inputs({.max_length = 5});
  const OneLayerGradient gradient = inputs.gradient();
  EXPECT_THROW(one_layer_loop(plan, inputs.parameters(), gradient, serial_executor()), ValueError);
  for (const double x : inputs.u_gradient) {
    EXPECT_TRUE(std::isnan(x));
  }
}

TEST(OneLayerLoopPlanTest, PackingKeepsTokensAndLabels) {
  const StringList list(6, 1, 13, 1.0, 9);
  for (std::size_t n = 0; n < list.strings.size(); ++n) {
    const std::size_t block = n / 8;
    const unsigned lane = n % 8;
    for (std::size_t l = 0; l < 5; ++l) {
      EXPECT_EQ((list.packed.tokens[5 * block + l] >> lane) & 1U, list.strings[n].tokens[l]);
    }
    EXPECT_EQ((list.packed.negative[block] >> lane) & 1U, list.strings[n].label < 0 ? 1U : 0U);
  }
}

}  // namespace
}  // namespace paperlab::kernels
