// The fold on a GPU. Compiled in builds with CUDA alone.

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "kernels/common/cuda/descent.h"
#include "kernels/one_layer_fold/cuda.h"
#include "paperlab/regular_language/dataset_internal.h"
#include "tests/support/error_measure.h"
#include "tests/support/exact_one_layer.h"
#include "tests/support/gpu.h"
#include "tests/support/one_layer_inputs.h"

namespace paperlab::kernels {
namespace {

using test::OneLayerCase;
using test::OneLayerInputs;

class GpuFoldTest : public test::GpuTest {};

std::vector<AffineGroup> chain_groups(int base_length) {
  regular_language::TrainOptions options;
  options.task = regular_language::Task::kParityCot;
  options.base_length = base_length;
  options.max_length = 2 * base_length - 2;
  return regular_language::affine_groups(options);
}

std::unique_ptr<DescentCuda> make_descent(const std::vector<AffineGroup>& groups,
                                          const OneLayerParameters& parameters) {
  return std::make_unique<DescentCuda>(std::make_unique<FoldPlanCuda>(FoldPlan(groups)),
                                       parameters.max_length, parameters.attention_scale);
}

// The device's outputs start as NaN (descent.cu).
OneLayerEvaluation run(DescentCuda& descent, OneLayerInputs& inputs) {
  inputs.gradient();
  descent.gradient(inputs.u, inputs.w, inputs.u_gradient, inputs.w_gradient);
  return descent.evaluate(inputs.u, inputs.w);
}

void expect_exact(const std::vector<AffineGroup>& groups, OneLayerCase of) {
  SCOPED_TRACE("length " + std::to_string(groups.back().length));
  of.max_length = std::max(of.max_length, groups.back().length);
  OneLayerInputs inputs(of);
  const auto strings = test::strings_of(groups);
  const test::ExactOneLayer exact = test::exact_one_layer(strings, inputs.parameters());
  const double bound =
      test::rounding_bound(exact, groups.back().length, static_cast<double>(strings.size()));
  const auto descent = make_descent(groups, inputs.parameters());
  const OneLayerEvaluation evaluation = run(*descent, inputs);
  EXPECT_TRUE(test::is_close(inputs.u_gradient, exact.u, exact.u_norm, bound));
  EXPECT_TRUE(test::is_close(inputs.w_gradient, exact.w, exact.w_norm, bound));
  EXPECT_TRUE(test::is_close(evaluation.loss, exact.loss, exact.loss_norm, bound));
  EXPECT_TRUE(test::is_close(evaluation.min_margin, exact.min_margin, exact.largest_u, bound));
  EXPECT_EQ(evaluation.num_correct, exact.num_correct);
  EXPECT_EQ(evaluation.num_strings, std::ssize(strings));
}

TEST_F(GpuFoldTest, GivesTheExactGradientOfEvenPairs) {
  for (const int max_length : {1, 2, 3, 4, 5, 6, 7, 11, 12, 15, 16}) {
    expect_exact(test::even_pairs_groups(max_length), {});
  }
}

TEST_F(GpuFoldTest, GivesTheExactGradientOfUnevenWeightsAndWideLogits) {
  expect_exact(test::with_uneven_weights(test::even_pairs_groups(13)),
               {.w_std = 20.0, .attention_scale = 0.5});
}

TEST_F(GpuFoldTest, GivesTheExactGradientOfChains) {
  for (const int base_length : {2, 3, 4, 5, 7, 9, 12, 13}) {
    expect_exact(chain_groups(base_length), {});
  }
}

TEST_F(GpuFoldTest, GivesTheExactGradientOfRandomMasks) {
  expect_exact(test::random_groups(13, 17), {});
}

TEST_F(GpuFoldTest, EntriesBeyondThePlanAreZero) {
  expect_exact(test::even_pairs_groups(3), {.max_length = 40});
}

TEST_F(GpuFoldTest, HasTheSameBitsInEveryRun) {
  const auto groups = test::even_pairs_groups(18);
  OneLayerInputs first({.max_length = 18});
  const OneLayerEvaluation expected = run(*make_descent(groups, first.parameters()), first);
  for (int repetition = 0; repetition < 3; ++repetition) {
    OneLayerInputs again({.max_length = 18});
    const OneLayerEvaluation evaluation = run(*make_descent(groups, again.parameters()), again);
    EXPECT_TRUE(test::has_same_bits(first.u_gradient, again.u_gradient));
    EXPECT_TRUE(test::has_same_bits(first.w_gradient, again.w_gradient));
    EXPECT_EQ(expected.loss, evaluation.loss);
    EXPECT_EQ(expected.min_margin, evaluation.min_margin);
  }
}

TEST_F(GpuFoldTest, RefusesLogitsThatAreTooFarApart) {
  OneLayerInputs inputs({.max_length = 6});
  inputs.w[0 + 2 * 6 * 10] = 2000.0;
  const auto descent = make_descent(test::even_pairs_groups(6), inputs.parameters());
  EXPECT_THROW(run(*descent, inputs), UnsupportedError);
}

TEST_F(GpuFoldTest, StepsAtOnceAreStepsOneByOne) {
  OneLayerInputs many({.max_length = 9});
  OneLayerInputs one({.max_length = 9});
  const auto descent = make_descent(test::even_pairs_groups(9), many.parameters());
  EXPECT_EQ(descent->descend(many.u, many.w, 0.1, 0.2, 37), -1);
  for (int step = 0; step < 37; ++step) {
    EXPECT_EQ(descent->descend(one.u, one.w, 0.1, 0.2, 1), -1);
  }
  EXPECT_TRUE(test::has_same_bits(many.u, one.u));
  EXPECT_TRUE(test::has_same_bits(many.w, one.w));
}

TEST_F(GpuFoldTest, TellsTheFirstStepThatIsNotFinite) {
  OneLayerInputs inputs({.max_length = 6});
  const auto descent = make_descent(test::even_pairs_groups(6), inputs.parameters());
  const double infinity = std::numeric_limits<double>::infinity();
  EXPECT_EQ(descent->descend(inputs.u, inputs.w, infinity, 0.0, 20), 1);
}

}  // namespace
}  // namespace paperlab::kernels
