// The exact two-class model against the training of every string.
#include <gtest/gtest.h>

#include <cmath>
#include <numbers>
#include <string>
#include <vector>

#include "paperlab/regular_language/train.h"
#include "tests/paperlab/regular_language/train_cases.h"

namespace paperlab::regular_language {
namespace {

void expect_same_path(TrainOptions options) {
  const History reduced = train(options);
  options.method = Method::kFold;
  const History full = train(options);
  for (std::size_t r = 0; r < full.loss.size(); ++r) {
    SCOPED_TRACE("step " + std::to_string(full.step[r]));
    EXPECT_NEAR(reduced.loss[r], full.loss[r], 1e-9 * full.loss[r]);
    EXPECT_NEAR(reduced.u_norm[r], full.u_norm[r], 1e-9 * full.u_norm[r]);
    EXPECT_NEAR(reduced.w_norm[r], full.w_norm[r], 1e-9 * full.w_norm[r]);
    EXPECT_NEAR(reduced.min_margin[r], full.min_margin[r], 1e-9);
    EXPECT_EQ(reduced.accuracy[r], full.accuracy[r]);
    EXPECT_EQ(reduced.accuracy[r] == 1.0, full.accuracy[r] == 1.0);
    for (std::size_t i = 0; i < full.u[r].size(); ++i) {
      EXPECT_NEAR(reduced.u[r][i], full.u[r][i], 1e-9 * full.u_norm[r]);
    }
  }
  for (std::size_t i = 0; i < full.w.size(); ++i) {
    EXPECT_NEAR(reduced.w[i], full.w[i], 1e-9 * full.w_norm.back());
  }
}

TEST(TwoClassTest, FollowsEvenPairsOnEveryString) {
  expect_same_path(recording(even_pairs(6), {0, 1, 2, 100, 600, 1000, 10000}));
  expect_same_path(recording(even_pairs(10), {100, 300, 600}));
  expect_same_path(recording(even_pairs(1), {0, 1, 100}));
  expect_same_path(recording(even_pairs(2), {0, 1, 100, 1000}));
}

TEST(TwoClassTest, FollowsChainsOnEveryString) {
  for (const int base_length : {2, 3, 4, 5}) {
    SCOPED_TRACE("base_length " + std::to_string(base_length));
    expect_same_path(recording(parity_cot(base_length), {0, 1, 2, 100, 600, 1000, 10000}));
  }
  expect_same_path(recording(parity_cot(8), {100, 600, 1000}));
}

TEST(SlowTwoClassTest, FollowsLongChainsOnEveryString) {
  expect_same_path(recording(parity_cot(8), {5000, 10000}));
  expect_same_path(recording(parity_cot(12), {100, 200}));
}

TEST(TwoClassTest, FollowsOtherScalesAndSchedules) {
  for (const double scale : {0.5, 1.0, 8.0}) {
    TrainOptions options = recording(even_pairs(6), {100, 1000});
    options.attention_scale = scale;
    options.boost_steps = 50;
    expect_same_path(options);
  }
}

TEST(TwoClassTest, FollowsEveryOptimizer) {
  for (const Optimizer optimizer :
       {Optimizer::kHeavyBall, Optimizer::kAdam, Optimizer::kNormalizedGd}) {
    TrainOptions options = recording(even_pairs(5), {1, 10, 100});
    options.optimizer = optimizer;
    options.learning_rate = 0.01;
    expect_same_path(options);
  }
}

TEST(TwoClassTest, ServesLength4096) {
  const History history = train(recording(even_pairs(4096), {0, 1, 2}));
  EXPECT_NEAR(history.loss[0], 4096.0 * std::numbers::ln2, 1e-9);
  EXPECT_LT(history.loss[1], history.loss[0]);
  EXPECT_LT(history.loss[2], history.loss[1]);
  // All positives are right and no negative is: half, and the two strings of length 1 more.
  EXPECT_NEAR(history.accuracy[1], 0.5, 1e-15);
}

// The share of strings is exact at any length: 1 is reached, and nothing above it.
TEST(TwoClassTest, AccuracyIsTheShareOfAllStrings) {
  const History history = train(recording(even_pairs(6), {1, 200, 231}));
  EXPECT_NEAR(history.accuracy[0], 64.0 / 126.0, 1e-15);
  EXPECT_NEAR(history.accuracy[1], 120.0 / 126.0, 1e-15);
  EXPECT_EQ(history.accuracy[2], 1.0);
  const History chains = train(recording(parity_cot(4), {100, 200, 300}));
  EXPECT_NEAR(chains.accuracy[0], 32.0 / 62.0, 1e-15);
  EXPECT_EQ(chains.accuracy[2], 1.0);
}

TEST(TwoClassTest, LogitsThatAreFarApartGiveTheLossOfAllStrings) {
  TrainOptions options;
  options.learning_rate = 5.0;
  options.attention_scale = 1e-4;
  options.num_steps = 300;
  const History two_class = train(options);
  options.method = Method::kStrings;
  const History all = train(options);
  EXPECT_NEAR(two_class.loss.back() / all.loss.back(), 1.0, 1e-12);
  EXPECT_EQ(two_class.accuracy, all.accuracy);
}

TEST(TwoClassTest, TheAccuracyIsTheQuotientOfTwoCounts) {
  TrainOptions options;
  options.max_length = 3;
  options.attention_scale = 1.0;
  options.num_steps = 300;
  options.record.clear();
  for (std::int64_t step = 0; step <= options.num_steps; ++step) {
    options.record.push_back(step);
  }
  const History two_class = train(options);
  options.method = Method::kStrings;
  EXPECT_EQ(two_class.accuracy, train(options).accuracy);
}

}  // namespace
}  // namespace paperlab::regular_language
