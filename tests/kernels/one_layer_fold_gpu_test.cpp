// The fold on a GPU. Compiled in builds with CUDA alone.

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "kernels/common/cuda/descent.h"
#include "kernels/common/cuda/device_buffer.h"
#include "kernels/one_layer_fold/cuda.h"
#include "paperlab/core/error.h"
#include "paperlab/regular_language/dataset_internal.h"
#include "tests/support/device_memory.h"
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

// --- even pairs without a plan ------------------------------------------------------------------

OneLayerEvaluation run_even_pairs(OneLayerInputs& inputs) {
  inputs.gradient();
  OneLayerParameters parameters = inputs.parameters();
  const DeviceBuffer<double> u{std::span<const double>(inputs.u)};
  const DeviceBuffer<double> w{std::span<const double>(inputs.w)};
  DeviceBuffer<double> of_u{std::span<const double>(inputs.u_gradient)};
  DeviceBuffer<double> of_w{std::span<const double>(inputs.w_gradient)};
  DeviceBuffer<OneLayerEvaluation> evaluation(1);
  auto workspace = test::nan_workspace(even_pairs_cuda_workspace(parameters.max_length));
  parameters.u = u.data();
  parameters.w = w.data();
  even_pairs_cuda(parameters, {of_u.data(), of_w.data()}, workspace.data(), {});
  even_pairs_evaluate_cuda(parameters, evaluation.data(), workspace.data(), {});
  OneLayerEvaluation out;
  of_u.download(inputs.u_gradient, {});
  of_w.download(inputs.w_gradient, {});
  evaluation.download({&out, 1}, {});
  PAPERLAB_CUDA_CHECK(cudaStreamSynchronize(nullptr));
  return out;
}

TEST_F(GpuFoldTest, EvenPairsWithoutAPlanAreExactWhateverTheLogits) {
  for (const int max_length : {1, 2, 3, 6, 11, 14}) {
    for (const double w_std : {1.0, 20.0, 1e4}) {
      OneLayerInputs inputs({.max_length = max_length, .w_std = w_std});
      const auto strings = test::strings_of(test::even_pairs_groups(max_length));
      const test::ExactOneLayer exact = test::exact_one_layer(strings, inputs.parameters());
      const double bound =
          test::rounding_bound(exact, max_length, static_cast<double>(strings.size()));
      const OneLayerEvaluation evaluation = run_even_pairs(inputs);
      EXPECT_TRUE(test::is_close(inputs.u_gradient, exact.u, exact.u_norm, bound));
      EXPECT_TRUE(test::is_close(inputs.w_gradient, exact.w, exact.w_norm, bound));
      EXPECT_TRUE(test::is_close(evaluation.loss, exact.loss, exact.loss_norm, bound));
      EXPECT_EQ(evaluation.num_strings, std::ssize(strings));
    }
  }
}

TEST_F(GpuFoldTest, EvenPairsWithoutAPlanHaveTheSameBitsInEveryRun) {
  OneLayerInputs first({.max_length = 20});
  OneLayerInputs again = first;
  EXPECT_EQ(run_even_pairs(first).loss, run_even_pairs(again).loss);
  EXPECT_TRUE(test::has_same_bits(first.u_gradient, again.u_gradient));
  EXPECT_TRUE(test::has_same_bits(first.w_gradient, again.w_gradient));
}

// Needs no GPU.
TEST(EvenPairsCudaTest, LengthsThatNoWordHoldsAreRefused) {
  for (const int max_length : {-1, 0, kMaxStringLength + 1}) {
    EXPECT_THROW(even_pairs_cuda_workspace(max_length), ShapeError);
    const OneLayerParameters parameters{max_length, 2.0, nullptr, nullptr};
    EXPECT_THROW(even_pairs_cuda(parameters, {}, nullptr, {}), ShapeError);
    EXPECT_THROW(even_pairs_evaluate_cuda(parameters, nullptr, nullptr, {}), ShapeError);
  }
}

}  // namespace
}  // namespace paperlab::kernels
