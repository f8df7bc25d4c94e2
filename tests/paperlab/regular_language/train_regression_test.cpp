// Digits of earlier runs of the same configurations: these tests say that an implementation does
// the same as before, not that a claim of the paper holds. Values are compared to all their digits.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "paperlab/regular_language/measures.h"
#include "paperlab/regular_language/train.h"
#include "tests/paperlab/regular_language/train_cases.h"

namespace paperlab::regular_language {
namespace {

constexpr double kUnknown = std::numeric_limits<double>::quiet_NaN();

// step, loss (10 decimals), accuracy (6), smallest margin (8), |u| (8), |w| (8), u_1..u_6 (6), the
// common values of both tokens
using State = std::array<double, 12>;

const std::vector<State> kEvenPairStates = {
    {{0, 4.1588830834, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}},
    {{1, 4.1464995959, .507937, -.0125, .03535534, 0, .025, 0, 0, 0, 0, 0}},
    {{2, 4.1345714936, .507937, -.02468971, .07005204, .00027382, .049534, -.000154, -.000075,
      -.000041, -.000021, -.000009}},
    {{3, 4.1230779813, .507937, -.03657562, .10410672, .00081761, .073613, -.000457, -.000224,
      -.000121, -.000063, -.000026}},
    {{10, 4.0532164352, .507937, -.11179170, .32585147, .01188391, .230291, -.006484, -.003164,
      -.001702, -.000884, -.000362}},
    {{50, 3.8345286044, .507937, -.34544759, 1.22327447, .27952037, .851593, -.132848, -.062582,
      -.033005, -.016954, -.006901}},
    {{100, 3.6506885837, .507937, -.36635805, 1.99560241, .98986916, 1.334343, -.407276, -.182949,
      -.093763, -.047363, -.019097}},
    {{200, 3.2927024373, .952381, -.12442767, 3.39325484, 2.15965589, 2.090053, -1.064979, -.442722,
      -.214452, -.104405, -.041157}},
    {{300, 2.7966558230, 1, .13584958, 4.90525662, 3.75057707, 2.885186, -1.751391, -.709148,
      -.329737, -.154787, -.059375}},
    {{600, 1.1023490617, 1, .76874123, 9.65915203, 8.81489313, 5.327512, -3.758257, -1.765362,
      -.898333, -.437515, -.166746}},
    {{1000, .3429662304, 1, 1.72073709, 13.35060759, 12.33483710, 6.927935, -5.392977, -2.867508,
      -1.672200, -.929297, -.395517}},
    {{2000, .0941006317, 1, 2.93646540, 16.81769611, 15.19431260, 8.240531, -7.005590, -3.957572,
      -2.480169, -1.476987, -.661589}},
    {{5000, .0247888314, 1, 4.27747726, 20.08477893, 17.65086218, 9.439964, -8.583503, -4.925696,
      -3.180125, -1.941426, -.874595}},
    {{10000, .0102277086, 1, 5.20182902, 22.12017997, 19.12196220, 10.201199, -9.598728, -5.479105,
      -3.563880, -2.184796, -.977747}},
};

const std::vector<State> kChainStates = {
    {{2, 4.1345716583, .516129, kUnknown, .07005204, .00024159, .049534, -.000154, -.000075,
      -.000041, -.000021, -.000009}},
    {{10, 4.0532576938, .516129, kUnknown, .32582463, .01050692, .230272, -.006481, -.003160,
      -.001696, -.000878, -.000360}},
    {{100, 3.6697909323, .516129, kUnknown, 1.97317345, .88957916, 1.319575, -.404791, -.178684,
      -.087525, -.041198, -.016949}},
    {{200, 3.3607581156, .645161, kUnknown, 3.29023066, 1.93914479, 2.023435, -1.050925, -.418800,
      -.180883, -.071139, -.030034}},
    {{300, 2.9627128257, 1, kUnknown, 4.65812098, 3.33869649, 2.723651, -1.718509, -.643657,
      -.240551, -.066253, -.030808}},
    {{600, 1.7253452580, .870968, kUnknown, 8.72548734, 7.61850433, 4.751438, -3.676566, -1.360436,
      -.319297, .143777, .018879}},
    {{1000, .9441481812, 1, kUnknown, 12.25037690, 11.19237417, 6.407872, -5.368397, -2.168888,
      -.124671, .645710, .137095}},
    {{2000, .1752096599, 1, kUnknown, 16.85366580, 16.11246471, 8.520572, -6.741749, -4.602769,
      .490247, 1.486992, .578555}},
    {{5000, .0274801325, 1, kUnknown, 20.73232093, 19.85602377, 10.23124, -8.040265, -6.357895,
      .819207, 1.954103, .823397}},
    {{10000, .0104522995, 1, kUnknown, 22.79564679, 21.63257949, 11.115479, -8.845767, -7.206796,
      .914004, 2.109984, .891034}},
};

void expect_states(TrainOptions options, const std::vector<State>& states) {
  std::vector<std::int64_t> steps(states.size());
  std::transform(states.begin(), states.end(), steps.begin(),
                 [](const State& state) { return static_cast<std::int64_t>(state[0]); });
  const History history = train(recording(std::move(options), steps));
  for (std::size_t r = 0; r < states.size(); ++r) {
    SCOPED_TRACE("step " + std::to_string(steps[r]));
    EXPECT_NEAR(history.loss[r], states[r][1], 0.51e-10);
    EXPECT_NEAR(history.accuracy[r], states[r][2], 0.51e-6);
    if (!std::isnan(states[r][3])) {
      EXPECT_NEAR(history.min_margin[r], states[r][3], 0.51e-8);
    }
    EXPECT_NEAR(history.u_norm[r], states[r][4], 0.51e-8);
    EXPECT_NEAR(history.w_norm[r], states[r][5], 0.51e-8);
    for (std::size_t l = 0; l < 6; ++l) {
      EXPECT_NEAR(history.u[r][2 * l], states[r][6 + l], 0.51e-6);
      EXPECT_NEAR(history.u[r][2 * l + 1], states[r][6 + l], 0.51e-6);
    }
  }
}

class TrainRegressionTest : public testing::TestWithParam<Method> {};

TEST_P(TrainRegressionTest, EvenPairsOfSixTokens) {
  expect_states(even_pairs(6, GetParam()), kEvenPairStates);
}

TEST_P(TrainRegressionTest, ChainsOfFourBaseTokens) {
  expect_states(parity_cot(4, GetParam()), kChainStates);
}

INSTANTIATE_TEST_SUITE_P(Methods, TrainRegressionTest,
                         testing::Values(Method::kTwoClass, Method::kStrings, Method::kFold),
                         [](const auto& info) {
                           return info.param == Method::kTwoClass ? "two_class"
                                  : info.param == Method::kFold   ? "fold"
                                                                  : "strings";
                         });

// The first step from which every string is right until the end.
std::int64_t perfect_step(const TrainOptions& options, std::int64_t last) {
  const History history = train(recording_all(options, 0, last));
  return perfect_from(history.step, history.accuracy);
}

std::int64_t onset(const TrainOptions& options, std::int64_t last) {
  const History history = train(recording_all(options, 0, last));
  return log_growth_onset(history.step, history.u_norm);
}

TEST(TrainRegressionOnsetTest, StepsFromWhichAllIsRight) {
  EXPECT_EQ(perfect_step(even_pairs(6), 2000), 231);
  EXPECT_EQ(perfect_step(parity_cot(4), 2000), 629);
  const History history = train(recording_all(parity_cot(4), 280, 330));
  for (std::size_t r = 0; r < history.step.size(); ++r) {
    EXPECT_EQ(history.accuracy[r] == 1.0, history.step[r] >= 283 && history.step[r] <= 326);
  }
}

TEST(TrainRegressionOnsetTest, StepsAtWhichLogarithmicGrowthStarts) {
  EXPECT_EQ(onset(even_pairs(6), 2000), 576);
  EXPECT_NEAR(static_cast<double>(onset(parity_cot(4), 2000)), 670.0, 5.0);  // known to five steps
}

struct Lengthwise {
  int length;
  std::int64_t perfect;
  std::int64_t onset;             // 0: not known
  std::vector<double> loss;       // at 100, 600, 1000, 2000
  std::vector<double> tolerance;  // of each, half of the last digit
};

void expect_lengthwise(const Lengthwise& expected) {
  SCOPED_TRACE("max_length " + std::to_string(expected.length));
  const History history = train(recording(even_pairs(expected.length), {100, 600, 1000, 2000}));
  for (std::size_t r = 0; r < 4; ++r) {
    EXPECT_NEAR(history.loss[r], expected.loss[r], expected.tolerance[r]) << history.step[r];
  }
  EXPECT_EQ(perfect_step(even_pairs(expected.length), expected.perfect + 50), expected.perfect);
  if (expected.onset > 0) {
    EXPECT_EQ(onset(even_pairs(expected.length), expected.onset + 50), expected.onset);
  }
}

constexpr double kFive = 0.51e-5;
constexpr double kTen = 0.51e-10;

TEST(TrainRegressionLengthTest, EvenPairsOfUpToThirtyTwoTokens) {
  expect_lengthwise(
      {8, 231, 610, {5.02348, 1.74177, .50204, .12996}, {kFive, kFive, kFive, kFive}});
  expect_lengthwise(
      {12, 232, 689, {7.78062, 3.44825, .92628, .20964}, {kFive, kFive, kFive, kFive}});
  expect_lengthwise({16,
                     312,
                     765,
                     {10.5448378448, 5.5448773840, 1.5391167517, .29907},
                     {kTen, kTen, kTen, kFive}});
  expect_lengthwise({20,
                     361,
                     0,
                     {13.3122342113, 7.8624346521, 2.4054693778, .3982187208},
                     {kTen, kTen, kTen, kTen}});
  expect_lengthwise({24,
                     397,
                     899,
                     {16.0813073797, 10.3094098783, 3.5727408015, .5074997354},
                     {kTen, kTen, kTen, kTen}});
  expect_lengthwise(
      {32, 462, 1012, {21.62205, 15.4199, 6.7588, .75907}, {kFive, 1e-4, 1e-4, kFive}});
}

TEST(SlowTrainRegressionTest, EvenPairsOfUpTo256Tokens) {
  const std::vector<double> five = {kFive, kFive, kFive, kFive};
  expect_lengthwise({64, 844, 1348, {43.79608, 36.88168, 24.83963, 2.36289}, five});
  expect_lengthwise({128, 1538, 1799, {88.15419, 80.84842, 66.81747, 13.70659}, five});
  expect_lengthwise({256, 2315, 2406, {176.87538, 169.36411, 154.22297, 83.23959}, five});
}

TEST(TrainRegressionLengthTest, NormsOfTwentyAndTwentyFourTokens) {
  const History twenty = train(recording(even_pairs(20), {100, 300, 600, 1000, 2000}));
  const std::vector<double> u = {2.04979779, 5.50511648, 12.81911153, 21.61544134, 29.85911287};
  const std::vector<double> w = {1.17279394, 4.63416325, 12.58708442, 22.19054578, 29.46603808};
  for (std::size_t r = 0; r < 5; ++r) {
    EXPECT_NEAR(twenty.u_norm[r], u[r], 0.51e-8);
    EXPECT_NEAR(twenty.w_norm[r], w[r], 0.51e-8);
  }
  EXPECT_NEAR(twenty.loss[1], 12.0544166800, kTen);
  const History longer = train(recording(even_pairs(24), {100, 300, 600, 1000, 2000}));
  const std::vector<double> v = {2.05443656, 5.55208471, 13.11173310, 22.82510648, 32.55534590};
  for (std::size_t r = 0; r < 5; ++r) {
    EXPECT_NEAR(longer.u_norm[r], v[r], 0.51e-8);
  }
  EXPECT_NEAR(longer.loss[1], 14.7881222432, kTen);
}

void expect_chain(int base_length, const std::vector<std::int64_t>& steps,
                  const std::vector<double>& loss, double tolerance) {
  SCOPED_TRACE("base_length " + std::to_string(base_length));
  const History history = train(recording(parity_cot(base_length), steps));
  for (std::size_t r = 0; r < steps.size(); ++r) {
    EXPECT_NEAR(history.loss[r], loss[r], tolerance) << steps[r];
  }
}

TEST(TrainRegressionLengthTest, ChainsOfUpToSixteenBaseTokens) {
  const std::vector<std::int64_t> all = {100, 1000, 2000, 5000, 10000, 20000};
  expect_chain(4, all, {3.66979, .94415, .17521, .02748, .01045, .00449}, kFive);
  expect_chain(6, all, {6.42072, 2.60033, 1.45562, .45470, .02351, .00833}, kFive);
  expect_chain(8, {100, 600, 1000}, {9.1800829906, 5.8092929396, 4.3035763834}, kTen);
  expect_chain(8, {2000, 5000}, {2.8679208036, .9013831697}, kTen);
  expect_chain(8, {10000, 20000}, {.04125, .01259}, kFive);
  expect_chain(10, {100, 1000, 2000, 5000},
               {11.9440059691, 6.0253594203, 4.3583267153, 1.6660420132}, kTen);
  expect_chain(12, all, {14.71053, 7.76382, 5.89507, 2.72170, .11516, .02425}, kFive);
  expect_chain(16, {100, 600, 1000, 2000},
               {20.2478199464, 15.2341348255, 11.3255562639, 9.0402003303}, kTen);
  expect_chain(16, all, {20.24782, 11.32556, 9.04020, 5.26611, .92570, .04637}, kFive);
}

TEST(SlowTrainRegressionTest, StepsFromWhichLongChainsAreRight) {
  const std::vector<std::pair<int, std::int64_t>> known = {
      {6, 4071}, {8, 4613}, {10, 4988}, {12, 6355}, {16, 11951}};
  for (const auto& [base_length, step] : known) {
    EXPECT_EQ(perfect_step(parity_cot(base_length), step + 2000), step) << base_length;
  }
}

TEST(SlowTrainRegressionTest, FoldOfTwentyTokensIsTheTwoClassPath) {
  const History history = train(recording(even_pairs(20, Method::kFold), {100}));
  EXPECT_NEAR(history.loss[0], 13.3122342113, kTen);
  EXPECT_NEAR(history.u_norm[0], 2.04979779, 0.51e-8);
  EXPECT_NEAR(history.w_norm[0], 1.17279394, 0.51e-8);
}

TEST(TrainRegressionControlTest, Schedules) {
  const auto onset_with = [](const std::function<void(TrainOptions&)>& change) {
    TrainOptions options = even_pairs(6);
    change(options);
    return static_cast<double>(onset(options, 1200));
  };
  // Known to five steps.
  EXPECT_NEAR(onset_with([](auto& o) { o.boost_steps = 0; }), 595.0, 5.0);
  EXPECT_NEAR(onset_with([](auto& o) { o.boost_steps = 5000; }), 420.0, 5.0);
  EXPECT_NEAR(onset_with([](auto& o) { o.boost = 4.0; }), 540.0, 5.0);
  EXPECT_NEAR(onset_with([](auto& o) { o.boost_steps = 300; }), 490.0, 5.0);
  TrainOptions uniform = even_pairs(6, Method::kStrings);
  uniform.uniform_weights = true;
  EXPECT_NEAR(static_cast<double>(onset(uniform, 1200)), 730.0, 5.0);
  EXPECT_EQ(perfect_step(uniform, 1200), 870);
}

TEST(TrainRegressionControlTest, Regularizers) {
  const auto loss_with = [](int length, std::int64_t step) {
    TrainOptions options = recording(parity_cot(4, Method::kFold), {0, step});
    options.regularizer_length = length;
    return train(options).loss;
  };
  EXPECT_NEAR(loss_with(4, 10000)[0], 4.8520, 0.51e-4);
  EXPECT_NEAR(loss_with(4, 10000)[1], .01006, kFive);
  EXPECT_NEAR(loss_with(6, 10000)[0], 6.2383, 0.51e-4);
  EXPECT_NEAR(loss_with(6, 10000)[1], 1.2038, 0.51e-4);
  EXPECT_NEAR(loss_with(1, 10000)[0], 2.7726, 0.51e-4);
  EXPECT_NEAR(loss_with(1, 10000)[1], .01075, kFive);
}

TEST(TrainRegressionControlTest, HeavyBall) {
  TrainOptions options = recording(even_pairs(6), {100, 1000, 10000});
  options.optimizer = Optimizer::kHeavyBall;
  const History history = train(options);
  EXPECT_NEAR(history.loss[0], .20379, kFive);
  EXPECT_NEAR(history.loss[1], .0096847, 0.51e-7);
  EXPECT_NEAR(history.loss[2], .00070976, 0.51e-8);
  options = recording(parity_cot(4), {100, 1000});
  options.optimizer = Optimizer::kHeavyBall;
  const History chains = train(options);
  EXPECT_NEAR(chains.loss[0], .72404, kFive);
  EXPECT_NEAR(chains.loss[1], .0098269, 0.51e-7);
}

TEST(TrainRegressionControlTest, Adam) {
  TrainOptions options = recording(even_pairs(6), {1000});
  options.optimizer = Optimizer::kAdam;
  options.learning_rate = 0.01;
  options.boost = 1.0;
  EXPECT_NEAR(train(options).loss[0], .0611, 0.51e-4);
  options = recording(parity_cot(4), {100, 1000});
  options.optimizer = Optimizer::kAdam;
  options.learning_rate = 0.01;
  options.boost = 1.0;
  const History chains = train(options);
  EXPECT_EQ(chains.accuracy[0], 1.0);
  EXPECT_NEAR(chains.loss[1], .0631, 0.51e-4);
}

TEST(TrainRegressionControlTest, LargeStepsAreTheSamePhysics) {
  TrainOptions options = recording(even_pairs(6), {100});
  options.learning_rate = 1.0;
  options.boost_steps = 10;
  EXPECT_NEAR(train(options).loss[0], .34363, kFive);
  options.learning_rate = 5.0;
  options.boost_steps = 2;
  EXPECT_NEAR(train(options).loss[0], .0245, 0.51e-4);
}

TEST(TrainRegressionControlTest, TokenAndPositionEmbeddings) {
  TrainOptions options = even_pairs(6, Method::kStrings);
  options.embedding = Embedding::kTokenPosition;
  EXPECT_EQ(perfect_step(options, 1000), 258);
  EXPECT_NEAR(train(recording(options, {1000})).loss[0], .39323, kFive);
}

TEST(TrainRegressionControlTest, ParityWithoutAChain) {
  TrainOptions options = recording(even_pairs(6, Method::kStrings), {0, 1000, 10000});
  options.task = Task::kParity;
  const History history = train(options);
  for (const double accuracy : history.accuracy) {
    EXPECT_LE(accuracy, 0.51);
  }
  EXPECT_GT(history.loss[2], 4.0 * std::log(2.0));
}

}  // namespace
}  // namespace paperlab::regular_language
