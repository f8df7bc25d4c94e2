// The fold on a GPU, and training with it.

#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "kernels/common/cuda/descent.h"
#include "kernels/one_layer_fold/cuda.h"
#include "paperlab/regular_language/dataset_internal.h"
#include "paperlab/regular_language/train.h"
#include "tests/support/error_measure.h"
#include "tests/support/exact_one_layer.h"
#include "tests/support/gpu.h"
#include "tests/support/one_layer_inputs.h"

namespace paperlab::kernels {
namespace {

using regular_language::Device;
using regular_language::History;
using regular_language::Method;
using regular_language::Task;
using regular_language::train;
using regular_language::TrainOptions;
using test::OneLayerCase;
using test::OneLayerInputs;

class GpuFoldTest : public test::GpuTest {};
class GpuTrainTest : public test::GpuTest {};

TrainOptions chain_options(int base_length) {
  TrainOptions options;
  options.task = Task::kParityCot;
  options.base_length = base_length;
  options.max_length = 2 * base_length - 2;
  options.method = Method::kFold;
  return options;
}

std::unique_ptr<DescentCuda> make_descent(const std::vector<AffineGroup>& groups,
                                          const OneLayerParameters& parameters) {
  if constexpr (kHasCuda) {
    return std::make_unique<DescentCuda>(std::make_unique<FoldPlanCuda>(FoldPlan(groups)),
                                         parameters.max_length, parameters.attention_scale);
  }
  return nullptr;
}

// The device's outputs start as NaN (descent.cu).
OneLayerEvaluation run(DescentCuda& descent, OneLayerInputs& inputs) {
  if constexpr (kHasCuda) {
    inputs.gradient();
    descent.gradient(inputs.u, inputs.w, inputs.u_gradient, inputs.w_gradient);
    return descent.evaluate(inputs.u, inputs.w);
  }
  return {};
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
    expect_exact(regular_language::affine_groups(chain_options(base_length)), {});
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
  if constexpr (kHasCuda) {
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
}

// ---- Training -------------------------------------------------------------------------------

double relative(double a, double b) { return std::abs(a / b - 1.0); }

void expect_same_training(TrainOptions options) {
  options.record = {0, 1, 2, 50, 100, 200};
  options.num_steps = 200;
  const History cpu = train(options);
  options.device = Device::kCuda;
  const History gpu = train(options);
  for (std::size_t r = 0; r < cpu.step.size(); ++r) {
    EXPECT_LT(relative(gpu.loss[r], cpu.loss[r]), 1e-12) << "step " << cpu.step[r];
    EXPECT_EQ(gpu.accuracy[r], cpu.accuracy[r]) << "step " << cpu.step[r];
    for (std::size_t i = 0; i < cpu.u[r].size(); ++i) {
      EXPECT_NEAR(gpu.u[r][i], cpu.u[r][i], 1e-12) << "step " << cpu.step[r] << " entry " << i;
    }
  }
  for (std::size_t i = 0; i < cpu.w.size(); ++i) {
    EXPECT_NEAR(gpu.w[i], cpu.w[i], 1e-12) << "entry " << i;
  }
}

TEST_F(GpuTrainTest, TwoHundredStepsFollowTheCpu) {
  for (const Method method : {Method::kFold, Method::kStrings}) {
    TrainOptions options = chain_options(5);
    options.method = method;
    options.init_std = 0.01;
    expect_same_training(options);
    options.task = Task::kEvenPairs;
    options.boost_steps = 33;
    options.freeze_attention_from = 150;
    expect_same_training(options);
  }
}

TEST_F(GpuTrainTest, ReportsTheStepAtWhichTheLossStopsBeingFinite) {
  TrainOptions options;
  options.method = Method::kFold;
  options.learning_rate = 1e308;
  options.record = {};
  const auto message = [&] {
    try {
      train(options);
    } catch (const ValueError& error) {
      return std::string(error.what());
    }
    return std::string("nothing");
  };
  const std::string cpu = message();
  options.device = Device::kCuda;
  EXPECT_EQ(message(), cpu);
}

TEST(TrainDeviceTest, CudaIsRefusedWhereItDoesNotServe) {
  TrainOptions options;
  options.device = Device::kCuda;
  EXPECT_THROW(train(options), ValueError);  // two_class
  options.method = Method::kFold;
  options.optimizer = regular_language::Optimizer::kAdam;
  EXPECT_THROW(train(options), ValueError);
  options.optimizer = regular_language::Optimizer::kGd;
  if (!test::has_gpu()) {
    EXPECT_THROW(train(options), UnsupportedError);
  }
}

// ---- Every string at full length (Sec. 3.6: the two-class model is exact) --------------------

void expect_two_class(TrainOptions options, const std::vector<double>& printed, double tolerance) {
  options.method = Method::kTwoClass;
  const History expected = train(options);
  options.method = Method::kFold;
  options.device = Device::kCuda;
  const History gpu = train(options);
  ASSERT_EQ(gpu.loss.size(), printed.size());
  for (std::size_t r = 0; r < printed.size(); ++r) {
    EXPECT_LT(relative(gpu.loss[r], expected.loss[r]), 1e-9) << "step " << gpu.step[r];
    EXPECT_LT(relative(gpu.loss[r], printed[r]), tolerance) << "step " << gpu.step[r];
  }
}

TEST_F(GpuTrainTest, EvenPairsOfLength20And24FollowTheTwoClassModel) {
  TrainOptions options;
  options.record = {100, 300, 600, 1000, 2000};
  options.max_length = 20;
  expect_two_class(options,
                   {13.3122342113, 12.0544166800, 7.8624346521, 2.4054693778, 0.3982187208}, 1e-9);
  options.max_length = 24;
  expect_two_class(options,
                   {16.0813073797, 14.7881222432, 10.3094098783, 3.5727408015, 0.5074997354}, 1e-9);
}

// Every step of the truncated chain of thought is a question about one string of length 24, so its
// answers are exact if all of these are correct.
TEST_F(GpuTrainTest, EvenPairsOfLength24FromARandomStartAreAllCorrect) {
  TrainOptions options;
  options.method = Method::kFold;
  options.device = Device::kCuda;
  options.max_length = 24;
  options.record = {2000};
  const double from_zero = train(options).loss[0];
  options.init_std = 0.01;
  const History random = train(options);
  EXPECT_EQ(random.accuracy[0], 1.0);
  EXPECT_LT(relative(random.loss[0], from_zero), 0.01);
}

TEST_F(GpuTrainTest, ChainOfThoughtOf16FollowsTheTwoClassModel) {
  TrainOptions options = chain_options(16);
  options.record = {100, 600, 1000, 2000};
  expect_two_class(options, {20.2478199464, 15.2341348255, 11.3255562639, 9.0402003303}, 1e-8);
}

}  // namespace
}  // namespace paperlab::kernels
