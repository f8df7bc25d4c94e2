// Training on a GPU, and what it refuses.

#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "paperlab/regular_language/train.h"
#include "tests/support/gpu.h"

namespace paperlab::regular_language {
namespace {

class GpuTrainTest : public test::GpuTest {};

TrainOptions chain_options(int base_length) {
  TrainOptions options;
  options.task = Task::kParityCot;
  options.base_length = base_length;
  options.max_length = 2 * base_length - 2;
  options.method = Method::kFold;
  return options;
}

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
  options.device = Device::kCuda;
  try {
    train(options);
    FAIL() << "no error";
  } catch (const ValueError& error) {
    EXPECT_NE(std::string(error.what()).find("not finite at step"), std::string::npos)
        << error.what();
  }
}

TEST(TrainDeviceTest, CudaIsRefusedWhereItDoesNotServe) {
  TrainOptions options;
  options.device = Device::kCuda;
  EXPECT_THROW(train(options), ValueError);  // two_class
  options.method = Method::kFold;
  options.optimizer = Optimizer::kAdam;
  EXPECT_THROW(train(options), ValueError);
  options.optimizer = Optimizer::kGd;
  if (!test::has_gpu()) {
    EXPECT_THROW(train(options), UnsupportedError);
  }
}

// Every string at full length: there the two-class model is exact.
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
}  // namespace paperlab::regular_language
