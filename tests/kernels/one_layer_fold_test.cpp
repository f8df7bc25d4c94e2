#include "kernels/one_layer_fold/one_layer_fold.h"

#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "kernels/one_layer_fold/tile.h"
#include "paperlab/core/error.h"
#include "paperlab/regular_language/dataset_internal.h"
#include "tests/support/allocation_count.h"
#include "tests/support/error_measure.h"
#include "tests/support/exact_one_layer.h"
#include "tests/support/isa.h"
#include "tests/support/one_layer_inputs.h"

namespace paperlab::kernels {
namespace {

using test::OneLayerInputs;

std::vector<AffineGroup> chain_groups(int base_length) {
  regular_language::TrainOptions options;
  options.task = regular_language::Task::kParityCot;
  options.base_length = base_length;
  options.max_length = 2 * base_length - 2;
  return regular_language::affine_groups(options);
}

int longest(const std::vector<AffineGroup>& groups) { return groups.back().length; }

// What a case is compared with, and the bound of rounding: a sum runs over at most all strings of
// the reference, one after another.
struct Expected {
  explicit Expected(const std::vector<AffineGroup>& groups, const OneLayerInputs& inputs)
      : strings(test::strings_of(groups)),
        exact(test::exact_one_layer(strings, inputs.parameters())),
        bound(test::rounding_bound(exact, longest(groups), static_cast<double>(strings.size()))) {}

  std::vector<test::WeightedString> strings;
  test::ExactOneLayer exact;
  double bound;
};

void expect_close(const OneLayerInputs& inputs, const Expected& expected) {
  EXPECT_TRUE(
      test::is_close(inputs.u_gradient, expected.exact.u, expected.exact.u_norm, expected.bound));
  EXPECT_TRUE(
      test::is_close(inputs.w_gradient, expected.exact.w, expected.exact.w_norm, expected.bound));
}

void expect_evaluation(const OneLayerEvaluation& actual, const Expected& expected) {
  const auto& exact = expected.exact;
  EXPECT_TRUE(test::is_close(actual.loss, exact.loss, exact.loss_norm, expected.bound));
  EXPECT_TRUE(test::is_close(actual.min_margin, exact.min_margin, exact.largest_u, expected.bound));
  EXPECT_EQ(actual.num_correct, exact.num_correct);
  EXPECT_EQ(actual.num_strings, std::ssize(expected.strings));
}

void expect_kernel_and_reference(const std::vector<AffineGroup>& groups, OneLayerInputs& inputs) {
  const Expected expected(groups, inputs);
  FoldPlan plan(groups);
  one_layer_fold(plan, inputs.parameters(), inputs.gradient(), serial_executor());
  expect_close(inputs, expected);
  expect_evaluation(one_layer_fold_evaluate(plan, inputs.parameters(), serial_executor()),
                    expected);
  const auto reference = one_layer_fold_reference(groups, inputs.parameters(), inputs.gradient());
  expect_close(inputs, expected);
  expect_evaluation(reference, expected);
}

class OneLayerFoldTest : public testing::TestWithParam<CpuIsa> {
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

TEST_P(OneLayerFoldTest, EvenPairsOfEveryLengthAreWithinRounding) {
  for (int length = 1; length <= 12; ++length) {
    SCOPED_TRACE("max_length " + std::to_string(length));
    OneLayerInputs inputs({.max_length = length, .seed = 30 + static_cast<unsigned>(length)});
    expect_kernel_and_reference(test::even_pairs_groups(length), inputs);
  }
}

TEST_P(OneLayerFoldTest, ChainsOfEveryBaseLengthAreWithinRounding) {
  for (int base_length = 2; base_length <= 9; ++base_length) {
    SCOPED_TRACE("base_length " + std::to_string(base_length));
    OneLayerInputs inputs({.max_length = 2 * base_length - 2, .seed = 50});
    expect_kernel_and_reference(chain_groups(base_length), inputs);
  }
}

TEST_P(OneLayerFoldTest, LargeLogitsAreWithinRounding) {
  for (const double w_std : {10.0, 100.0}) {
    OneLayerInputs inputs({.max_length = 9, .w_std = w_std, .attention_scale = 1.0});
    expect_kernel_and_reference(test::even_pairs_groups(9), inputs);
    OneLayerInputs of_chains({.max_length = 10, .w_std = w_std, .attention_scale = 1.0});
    expect_kernel_and_reference(chain_groups(6), of_chains);
  }
}

TEST_P(OneLayerFoldTest, SmallAttentionScaleIsWithinRounding) {
  OneLayerInputs inputs({.max_length = 8, .attention_scale = 0.125});
  expect_kernel_and_reference(test::even_pairs_groups(8), inputs);
}

TEST_P(OneLayerFoldTest, WeightsMayDifferFromGroupToGroup) {
  OneLayerInputs inputs({.max_length = 8});
  expect_kernel_and_reference(test::with_uneven_weights(test::even_pairs_groups(8)), inputs);
  expect_kernel_and_reference(test::with_uneven_weights(chain_groups(5)), inputs);
}

TEST_P(OneLayerFoldTest, AnyRowsAndColumnsAreWithinRounding) {
  for (std::uint64_t seed = 0; seed < 5; ++seed) {
    const std::vector<AffineGroup> groups = test::random_groups(11, seed);
    OneLayerInputs inputs({.max_length = longest(groups), .seed = seed});
    expect_kernel_and_reference(groups, inputs);
  }
}

TEST_P(OneLayerFoldTest, ParametersMayServeLongerStrings) {
  OneLayerInputs inputs({.max_length = 9});
  expect_kernel_and_reference(test::even_pairs_groups(5), inputs);
  for (std::size_t i = 0; i < inputs.w_gradient.size(); ++i) {
    if (i / 18 >= 10 || i % 18 >= 10) {  // queries and keys beyond position 5
      EXPECT_EQ(inputs.w_gradient[i], 0.0);
    }
  }
}

// exp of a spread of more than 600 may underflow: the definition takes over, with its bits.
TEST_P(OneLayerFoldTest, ASpreadBeyondUnderflowGivesTheReferencesBits) {
  const std::vector<AffineGroup> groups = test::even_pairs_groups(7);
  OneLayerInputs inputs({.max_length = 7, .w_std = 1000.0, .attention_scale = 1.0});
  FoldPlan plan(groups);
  one_layer_fold(plan, inputs.parameters(), inputs.gradient(), serial_executor());
  expect_close(inputs, Expected(groups, inputs));
  OneLayerInputs reference = inputs;
  const auto of_reference =
      one_layer_fold_reference(groups, reference.parameters(), reference.gradient());
  EXPECT_TRUE(test::has_same_bits(inputs.u_gradient, reference.u_gradient));
  EXPECT_TRUE(test::has_same_bits(inputs.w_gradient, reference.w_gradient));
  const auto evaluation = one_layer_fold_evaluate(plan, inputs.parameters(), serial_executor());
  EXPECT_EQ(evaluation.loss, of_reference.loss);
  EXPECT_EQ(evaluation.num_correct, of_reference.num_correct);
}

// One key far below the others drags nobody down: 700 > 600 takes the definition, 599 does not.
TEST_P(OneLayerFoldTest, ASpreadNearTheLimitIsWithinRounding) {
  for (const double lowest : {-599.0, -700.0, -2000.0}) {
    OneLayerInputs inputs({.max_length = 6, .w_std = 0.0, .attention_scale = 1.0});
    for (std::size_t i = 0; i < inputs.w.size(); i += 5) {
      inputs.w[i] = lowest;
    }
    expect_kernel_and_reference(test::even_pairs_groups(6), inputs);
  }
}

TEST_P(OneLayerFoldTest, BitsAreThoseOfTheGenericInstructionSet) {
  for (const int base_length : {0, 4, 9}) {
    const auto groups = base_length == 0 ? test::even_pairs_groups(12) : chain_groups(base_length);
    OneLayerInputs inputs({.max_length = longest(groups), .w_std = 3.0});
    FoldPlan plan(groups);
    one_layer_fold(plan, inputs.parameters(), inputs.gradient(), serial_executor());
    const double loss = one_layer_fold_evaluate(plan, inputs.parameters(), serial_executor()).loss;
    OneLayerInputs generic = inputs;
    const test::ScopedIsa isa(CpuIsa::kGeneric);
    one_layer_fold(plan, generic.parameters(), generic.gradient(), serial_executor());
    EXPECT_TRUE(test::has_same_bits(inputs.u_gradient, generic.u_gradient));
    EXPECT_TRUE(test::has_same_bits(inputs.w_gradient, generic.w_gradient));
    EXPECT_EQ(loss, one_layer_fold_evaluate(plan, generic.parameters(), serial_executor()).loss);
  }
}

TEST_P(OneLayerFoldTest, BitsDoNotDependOnThreadsOrTheRun) {
  const auto groups = test::even_pairs_groups(15);  // several tasks a group
  OneLayerInputs inputs({.max_length = 15});
  FoldPlan serial(groups);
  one_layer_fold(serial, inputs.parameters(), inputs.gradient(), serial_executor());
  const auto evaluation = one_layer_fold_evaluate(serial, inputs.parameters(), serial_executor());
  for (const int num_threads : {1, 2, 3}) {
    const ThreadPool pool(num_threads);
    FoldPlan plan(groups);
    for (int run = 0; run < 3; ++run) {
      OneLayerInputs again = inputs;
      one_layer_fold(plan, again.parameters(), again.gradient(), pool);
      EXPECT_TRUE(test::has_same_bits(again.u_gradient, inputs.u_gradient));
      EXPECT_TRUE(test::has_same_bits(again.w_gradient, inputs.w_gradient));
      const auto other = one_layer_fold_evaluate(plan, inputs.parameters(), pool);
      EXPECT_EQ(other.loss, evaluation.loss);
      EXPECT_EQ(other.min_margin, evaluation.min_margin);
      EXPECT_EQ(other.num_correct, evaluation.num_correct);
    }
  }
}

// h = 1e-6: the difference of two losses is rounded by its condition times the loss over h.
TEST_P(OneLayerFoldTest, GradientIsTheCentralDifferenceOfTheLoss) {
  constexpr double kStep = 1e-6;
  for (const auto& groups : {test::even_pairs_groups(6), chain_groups(4)}) {
    OneLayerInputs inputs({.max_length = 6});
    FoldPlan plan(groups);
    one_layer_fold(plan, inputs.parameters(), inputs.gradient(), serial_executor());
    const Expected expected(groups, inputs);
    const double allowed =
        expected.bound * static_cast<double>(expected.exact.loss_norm) / kStep + kStep * kStep;
    const auto loss = [&] {
      return one_layer_fold_evaluate(plan, inputs.parameters(), serial_executor()).loss;
    };
    const auto expect_slope = [&](double& x, double gradient) {
      const double before = x;
      x = before + kStep;
      const double up = loss();
      x = before - kStep;
      const double down = loss();
      x = before;
      EXPECT_NEAR(gradient, (up - down) / (2.0 * kStep), allowed);
    };
    for (std::size_t i = 0; i < inputs.u.size(); ++i) {
      expect_slope(inputs.u[i], inputs.u_gradient[i]);
    }
    for (std::size_t i = 0; i < inputs.w.size(); ++i) {
      expect_slope(inputs.w[i], inputs.w_gradient[i]);
    }
  }
}

// The softmax is unchanged by a shift of all logits, and its weights sum to one.
TEST_P(OneLayerFoldTest, GradientsSumToWhatTheSoftmaxSays) {
  const auto groups = test::even_pairs_groups(9);
  OneLayerInputs inputs({.max_length = 9});
  FoldPlan plan(groups);
  one_layer_fold(plan, inputs.parameters(), inputs.gradient(), serial_executor());
  const Expected expected(groups, inputs);
  const auto& exact = expected.exact;
  const long double u_norm = std::accumulate(exact.u_norm.begin(), exact.u_norm.end(), 0.0L);
  EXPECT_TRUE(test::is_close(std::reduce(inputs.u_gradient.begin(), inputs.u_gradient.end()),
                             exact.sum_of_c, u_norm, expected.bound));
  for (std::ptrdiff_t query = 0; query < 18; ++query) {
    const auto begin = inputs.w_gradient.begin() + 18 * query;
    const auto norm = exact.w_norm.begin() + 18 * query;
    EXPECT_TRUE(test::is_close(std::reduce(begin, begin + 18), 0.0L,
                               std::accumulate(norm, norm + 18, 0.0L), expected.bound));
  }
}

TEST_P(OneLayerFoldTest, HugeScoresGiveFiniteLossAndGradient) {
  const auto groups = test::even_pairs_groups(2);
  for (const double u : {800.0, -800.0}) {
    OneLayerInputs inputs({.max_length = 2, .w_std = 0.0});
    inputs.u.assign(4, u);
    FoldPlan plan(groups);
    const auto evaluation = one_layer_fold_evaluate(plan, inputs.parameters(), serial_executor());
    // Length 1 is positive, half of length 2 too: the wrong ones cost 800 each.
    EXPECT_DOUBLE_EQ(evaluation.loss, u > 0.0 ? 400.0 : 1200.0);
    one_layer_fold(plan, inputs.parameters(), inputs.gradient(), serial_executor());
    EXPECT_DOUBLE_EQ(std::reduce(inputs.u_gradient.begin(), inputs.u_gradient.end()),
                     u > 0.0 ? 0.5 : -1.5);
  }
}

TEST_P(OneLayerFoldTest, AtZeroParametersOnlyTheFirstTokenHasAGradient) {
  for (const bool is_chain : {false, true}) {
    const auto groups = is_chain ? chain_groups(5) : test::even_pairs_groups(8);
    OneLayerInputs inputs({.max_length = 8, .u_std = 0.0, .w_std = 0.0});
    FoldPlan plan(groups);
    one_layer_fold(plan, inputs.parameters(), inputs.gradient(), serial_executor());
    for (std::size_t i = 0; i < inputs.u_gradient.size(); ++i) {
      EXPECT_EQ(inputs.u_gradient[i], i < 2 ? -0.25 : 0.0) << i;
    }
    for (const double x : inputs.w_gradient) {
      EXPECT_EQ(x, 0.0);
    }
  }
}

TEST_P(OneLayerFoldTest, AStepAllocatesNothing) {
  if (!test::kCountsAllocations) {
    GTEST_SKIP() << "sanitizers have an operator new of their own";
  }
  const auto groups = test::even_pairs_groups(14);
  OneLayerInputs inputs({.max_length = 14});
  const OneLayerGradient gradient = inputs.gradient();
  for (const int num_threads : {1, 2}) {
    const ThreadPool pool(num_threads);
    FoldPlan plan(groups);
    one_layer_fold(plan, inputs.parameters(), gradient, pool);  // sees the number of threads
    const test::Allocations before = test::allocations();
    for (int step = 0; step < 3; ++step) {
      one_layer_fold(plan, inputs.parameters(), gradient, pool);
      one_layer_fold_evaluate(plan, inputs.parameters(), pool);
    }
    EXPECT_EQ(test::allocations().count, before.count);
  }
}

INSTANTIATE_TEST_SUITE_P(Isas, OneLayerFoldTest, testing::ValuesIn(test::all_isas()),
                         test::isa_name);

TEST(OneLayerFoldPlanTest, TakesAtMostOneMebibyteForStringsOfTwentyTokens) {
  if (!test::kCountsAllocations) {
    GTEST_SKIP() << "sanitizers have an operator new of their own";
  }
  const auto groups = test::even_pairs_groups(20);
  const test::Allocations before = test::allocations();
  const FoldPlan plan(groups);
  const test::Allocations after = test::allocations();
  EXPECT_LE(plan.num_bytes(), std::size_t{1} << 20U);
  // All that was ever asked for, the argument's copy included, is hardly more.
  EXPECT_LE(after.bytes - before.bytes, std::int64_t{1} << 20U);
  EXPECT_EQ(plan.num_strings, (std::int64_t{1} << 21U) - 2);
}

std::string message_of(const std::vector<AffineGroup>& groups) {
  try {
    const FoldPlan plan(groups);
  } catch (const ValueError& error) {
    return error.what();
  }
  return "no error";
}

TEST(OneLayerFoldPlanTest, BadGroupsAreRefused) {
  EXPECT_EQ(message_of({}), "one_layer_fold: groups must not be empty, got none");
  auto groups = test::even_pairs_groups(6);
  groups.back().length = 31;
  EXPECT_EQ(message_of(groups), "one_layer_fold: length must be in 1..30, got 31 in group 11");
  groups.back().length = 0;
  EXPECT_EQ(message_of(groups), "one_layer_fold: length must be in 1..30, got 0 in group 11");
  groups = test::even_pairs_groups(6);
  groups.back().mask[3] = 0b11111U;
  EXPECT_EQ(message_of(groups),
            "one_layer_fold: each position must read rows alone or columns alone, got group 11");
  groups = test::even_pairs_groups(6);
  std::swap(groups[5], groups[9]);
  EXPECT_EQ(message_of(groups), "one_layer_fold: groups must be sorted by length, got group 6");
}

TEST(OneLayerFoldPlanTest, ParametersTooSmallAreRefusedAndOutputsStay) {
  FoldPlan plan(test::even_pairs_groups(6));
  OneLayerInputs inputs({.max_length = 5});
  const OneLayerGradient gradient = inputs.gradient();
  EXPECT_THROW(one_layer_fold(plan, inputs.parameters(), gradient, serial_executor()), ValueError);
  for (const double x : inputs.u_gradient) {
    EXPECT_TRUE(std::isnan(x));
  }
}

}  // namespace
}  // namespace paperlab::kernels
