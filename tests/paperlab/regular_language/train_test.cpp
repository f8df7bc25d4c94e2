// What train() promises: closed forms of the first steps, invariants, records.
#include "paperlab/regular_language/train.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <numbers>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "paperlab/core/parallel.h"
#include "paperlab/core/rng.h"
#include "paperlab/regular_language/model.h"
#include "tests/paperlab/regular_language/train_cases.h"
#include "tests/support/error_measure.h"
#include "tests/support/exact_one_layer.h"

namespace paperlab::regular_language {
namespace {

constexpr double kEpsilon = std::numeric_limits<double>::epsilon();

double sigmoid(double x) { return 1.0 / (1.0 + std::exp(-x)); }

// Entry of History::w for token s at position l and query q at position `length`, both from 1.
double entry(const std::vector<double>& w, int max_length, int l, int s, int length, int q) {
  const auto width = 2 * static_cast<std::size_t>(max_length);
  const std::size_t key = 2 * static_cast<std::size_t>(l - 1) + static_cast<std::size_t>(s);
  return w[key * width + 2 * static_cast<std::size_t>(length - 1) + static_cast<std::size_t>(q)];
}

class TrainMethodTest : public testing::TestWithParam<Method> {
 protected:
  std::vector<TrainOptions> tasks() const {
    return {even_pairs(6, GetParam()), parity_cot(4, GetParam()), even_pairs(1, GetParam()),
            parity_cot(2, GetParam()), parity_cot(6, GetParam())};
  }
};

TEST_P(TrainMethodTest, TheLossStartsAtLnTwoForEachLength) {
  for (const TrainOptions& options : tasks()) {
    const History history = train(recording(options, {0}));
    EXPECT_NEAR(history.loss[0], options.max_length * std::numbers::ln2,
                20.0 * kEpsilon * options.max_length);
    EXPECT_EQ(history.accuracy[0], 0.0);  // y T = 0 is not correct
    EXPECT_EQ(history.min_margin[0], 0.0);
    EXPECT_EQ(history.u_norm[0], 0.0);
    EXPECT_EQ(history.w_norm[0], 0.0);
  }
}

TEST_P(TrainMethodTest, TheFirstStepMovesTheFirstTokenAlone) {
  for (const TrainOptions& options : tasks()) {
    const History history = train(recording(options, {1}));
    for (std::size_t i = 0; i < history.u[0].size(); ++i) {
      EXPECT_EQ(history.u[0][i], i < 2 ? options.learning_rate / 4.0 : 0.0) << i;
    }
    for (const double x : history.w) {
      EXPECT_EQ(x, 0.0);
    }
  }
}

TEST_P(TrainMethodTest, TheSecondStepHasItsClosedForm) {
  for (TrainOptions options : tasks()) {
    options.attention_scale = 3.0;
    const double eta = options.learning_rate;
    const double alpha = eta / 4.0;
    const History history = train(recording(options, {2}));
    const auto falls = [&](int l) {
      double sum = 0.0;
      for (int length = std::max(l, 2); length <= options.max_length; ++length) {
        sum += std::tanh(alpha / (2.0 * length)) / length;
      }
      return eta / 4.0 * sum;
    };
    for (int l = 1; l <= options.max_length; ++l) {
      const double expected = (l == 1 ? alpha + eta * sigmoid(-alpha) / 2.0 : 0.0) - falls(l);
      for (std::size_t s = 0; s < 2; ++s) {
        EXPECT_NEAR(history.u[0][2 * static_cast<std::size_t>(l - 1) + s], expected,
                    50.0 * kEpsilon * (l == 1 ? alpha : eta));
      }
    }
  }
}

TEST_P(TrainMethodTest, TheTargetsLogitsHaveTheirClosedFormAfterTwoSteps) {
  for (TrainOptions options : tasks()) {
    for (const int boost_steps : {0, 100}) {
      options.boost_steps = boost_steps;
      const double alpha = options.learning_rate / 4.0;
      const double rate =
          options.learning_rate * (boost_steps == 0 ? 1.0 / options.attention_scale : 1.0);
      const History history = train(recording(options, {2}));
      for (int length = 2; length <= options.max_length; ++length) {
        const bool is_chain = options.task == Task::kParityCot;
        const int p = is_chain ? std::max(1, length - options.base_length + 1) : 1;
        const double of_target =
            rate * alpha / (4.0 * length * length) * (p == 1 ? length - 1.0 : -1.0);
        const double plus = of_target * sigmoid(-alpha / length);
        const double minus = -of_target * sigmoid(alpha / length);
        for (int q = 0; q < 2; ++q) {
          const auto& w = history.w;
          EXPECT_NEAR(entry(w, options.max_length, p, q, length, q), plus, 1e-17);
          EXPECT_NEAR(entry(w, options.max_length, p, 1 - q, length, q), minus, 1e-17);
        }
      }
    }
  }
}

TEST_P(TrainMethodTest, ColumnsSumToZeroAndUnusedEntriesStayZero) {
  for (const TrainOptions& options : tasks()) {
    const History history = train(recording(options, {300}));
    const int max_length = options.max_length;
    for (int length = 1; length <= max_length; ++length) {
      for (int q = 0; q < 2; ++q) {
        double sum = 0.0;
        for (int l = 1; l <= max_length; ++l) {
          for (int s = 0; s < 2; ++s) {
            const double x = entry(history.w, max_length, l, s, length, q);
            sum += x;
            if (length == 1 || l > length || (l == length && s != q)) {
              EXPECT_EQ(x, 0.0) << l << " " << s << " " << length << " " << q;
            }
          }
        }
        // 300 updates, each mean free up to the rounding of a column of 2 L entries.
        EXPECT_NEAR(sum, 0.0, 300.0 * 2.0 * length * kEpsilon * history.w_norm[0]);
      }
    }
  }
}

TEST_P(TrainMethodTest, FlippingAllTokensChangesNothing) {
  for (const TrainOptions& options : tasks()) {
    const History history = train(recording(options, {300}));
    const auto& u = history.u[0];
    for (std::size_t i = 0; i < u.size(); i += 2) {
      EXPECT_NEAR(u[i], u[i + 1], 300.0 * kEpsilon * history.u_norm[0]);
    }
    const std::size_t width = u.size();
    for (std::size_t i = 0; i < width * width; ++i) {
      const std::size_t flipped = (i / width ^ 1U) * width + (i % width ^ 1U);
      EXPECT_NEAR(history.w[i], history.w[flipped], 300.0 * kEpsilon * history.w_norm[0] + 1e-18);
    }
  }
}

TEST_P(TrainMethodTest, ScoresOfALengthAndLabelAreEqual) {
  for (const TrainOptions& options : tasks()) {
    const History history = train(recording(options, {300}));
    const Model model{options.max_length, options.attention_scale, history.u[0], history.w};
    std::map<std::pair<std::size_t, int>, double> first;
    for (const LabelledString& string : training_strings(options)) {
      const double t = score(model, string.tokens);
      const auto [at, is_new] = first.try_emplace({string.tokens.size(), string.label}, t);
      EXPECT_NEAR(at->second, t, 1000.0 * kEpsilon * history.u_norm[0]);
    }
  }
}

// Scaling: (lambda, W, boost m) is (1, W / lambda, m / lambda^2).
TEST_P(TrainMethodTest, TheScaleOfTheLogitsIsAMatterOfUnits) {
  for (TrainOptions options : tasks()) {
    options.attention_scale = 3.0;
    options.boost_steps = 1000;
    options = recording(options, {10, 300});
    const History a = train(options);
    options.attention_scale = 1.0;
    options.boost = 1.0 / 3.0;
    const History b = train(options);
    for (std::size_t r = 0; r < 2; ++r) {
      EXPECT_NEAR(a.loss[r], b.loss[r], 1e-13 * a.loss[r]);
      EXPECT_NEAR(a.w_norm[r], 3.0 * b.w_norm[r], 1e-12 * a.w_norm[r]);
    }
  }
}

TEST_P(TrainMethodTest, FrozenAttentionStaysAsItIs) {
  TrainOptions options = recording(even_pairs(5, GetParam()), {20, 21, 60});
  options.freeze_attention_from = 20;
  options.record_w = true;
  const History history = train(options);
  EXPECT_EQ(history.w_record[0], history.w_record[1]);
  EXPECT_EQ(history.w_record[0], history.w);
  EXPECT_GT(history.w_norm[0], 0.0);
  EXPECT_NE(history.u[0], history.u[2]);
}

TEST_P(TrainMethodTest, RecordsAreTheStatesAfterThatManySteps) {
  for (const TrainOptions& options : tasks()) {
    const History all = train(recording_all(options, 0, 12));
    for (const std::int64_t step : {0, 1, 7, 12}) {
      const auto r = static_cast<std::size_t>(step);
      const History one = train(recording(options, {step}));
      EXPECT_EQ(one.step, std::vector<std::int64_t>{step});
      EXPECT_EQ(one.loss[0], all.loss[r]);
      EXPECT_EQ(one.accuracy[0], all.accuracy[r]);
      EXPECT_EQ(one.u[0], all.u[r]);
      EXPECT_EQ(one.w_norm[0], all.w_norm[r]);
    }
  }
}

TEST_P(TrainMethodTest, WIsTheLastEvenIfTheLastRecordIsEarlier) {
  TrainOptions options = even_pairs(4, GetParam());
  options.record = {3};
  options.num_steps = 9;
  EXPECT_EQ(train(options).w, train(recording(options, {9})).w);
  options.record = {};
  EXPECT_EQ(train(options).w, train(recording(options, {9})).w);
  EXPECT_TRUE(train(options).loss.empty());
}

TEST_P(TrainMethodTest, NormsAreThoseOfTheWholeParameters) {
  for (const TrainOptions& options : tasks()) {
    const History history = train(recording(options, {50}));
    const auto norm = [](const std::vector<double>& x) {
      return std::sqrt(std::inner_product(x.begin(), x.end(), x.begin(), 0.0));
    };
    EXPECT_NEAR(history.u_norm[0], norm(history.u[0]), 1e-14 * history.u_norm[0]);
    EXPECT_NEAR(history.w_norm[0], norm(history.w), 1e-14 * history.w_norm[0] + 1e-30);
  }
}

TEST_P(TrainMethodTest, ThreadsDoNotChangeABit) {
  const int before = get_num_threads();
  TrainOptions options = even_pairs(14, GetParam());
  options.init_std = GetParam() == Method::kTwoClass ? 0.0 : 0.3;
  options = recording(options, {0, 2});
  set_num_threads(1);
  const History serial = train(options);
  for (const int num_threads : {2, 3}) {
    set_num_threads(num_threads);
    const History parallel = train(options);
    EXPECT_TRUE(test::has_same_bits(parallel.w, serial.w));
    EXPECT_TRUE(test::has_same_bits(parallel.u[1], serial.u[1]));
    EXPECT_TRUE(test::has_same_bits(parallel.loss, serial.loss));
  }
  set_num_threads(before);
}

std::string method_name(const testing::TestParamInfo<Method>& info) {
  return info.param == Method::kTwoClass ? "two_class"
         : info.param == Method::kFold   ? "fold"
                                         : "strings";
}

INSTANTIATE_TEST_SUITE_P(Methods, TrainMethodTest,
                         testing::Values(Method::kTwoClass, Method::kStrings, Method::kFold),
                         method_name);

// Five steps of the paper's algorithm in long double: old-point gradients, the boost for w alone.
TEST(TrainTest, UpdatesAreThoseOfTheAlgorithm) {
  TrainOptions options = recording(even_pairs(4, Method::kFold), {0, 5});
  options.init_std = 0.7;
  options.boost_steps = 2;
  options.attention_scale = 0.75;
  const History history = train(options);
  std::vector<test::WeightedString> strings;
  for (const LabelledString& string : training_strings(options)) {
    strings.push_back({string.tokens, string.label, string.weight});
  }
  std::vector<double> u = history.u[0];
  std::vector<double> w(64);  // one query's keys contiguous, as the kernels want them
  for (std::size_t i = 0; i < 64; ++i) {
    w[i % 8 * 8 + i / 8] = 0.7 * philox_normal(options.seed, 1, i);
  }
  for (int step = 0; step < 5; ++step) {
    const auto g = test::exact_one_layer(strings, {4, 0.75, u.data(), w.data()});
    for (std::size_t i = 0; i < 8; ++i) {
      u[i] -= static_cast<double>(0.1L * g.u[i]);
    }
    for (std::size_t i = 0; i < 64; ++i) {
      w[i] -= static_cast<double>(0.1L * (step < 2 ? 0.75L : 1.0L) * g.w[i]);
    }
  }
  for (std::size_t i = 0; i < 8; ++i) {
    EXPECT_NEAR(history.u[1][i], u[i], 1e-14);
  }
  for (std::size_t i = 0; i < 64; ++i) {
    EXPECT_NEAR(history.w[i], w[i % 8 * 8 + i / 8], 1e-14);
  }
}

TEST(TrainTest, EveryOptimizerBoostsTheStepOfW) {
  for (const Optimizer optimizer : {Optimizer::kGd, Optimizer::kHeavyBall, Optimizer::kAdam,
                                    Optimizer::kSignGd, Optimizer::kNormalizedGd}) {
    TrainOptions options = recording(even_pairs(4, Method::kStrings), {0, 1});
    options.init_std = 1.0;
    options.optimizer = optimizer;
    options.record_w = true;
    options.attention_scale = 4.0;
    const History boosted = train(options);
    options.boost_steps = 0;
    const History plain = train(options);
    EXPECT_EQ(boosted.u[1], plain.u[1]);
    for (std::size_t i = 0; i < boosted.w.size(); ++i) {
      const double start = plain.w_record[0][i];
      EXPECT_NEAR(boosted.w[i] - start, 4.0 * (plain.w[i] - start), 1e-14);
    }
  }
}

TEST(TrainTest, InitialParametersScaleExactlyAndDependOnTheWholeSeed) {
  TrainOptions options = recording(even_pairs(5, Method::kFold), {0});
  options.init_std = 1.0;
  const History unit = train(options);
  options.method = Method::kStrings;
  EXPECT_EQ(train(options).w, unit.w);
  EXPECT_EQ(train(options).u[0], unit.u[0]);
  options.init_std = 0.3;
  const History scaled = train(options);
  for (std::size_t i = 0; i < unit.w.size(); ++i) {
    EXPECT_EQ(scaled.w[i], 0.3 * unit.w[i]);
  }
  for (std::size_t i = 0; i < unit.u[0].size(); ++i) {
    EXPECT_EQ(scaled.u[0][i], 0.3 * unit.u[0][i]);
  }
  options.seed = std::uint64_t{1} << 63U;
  EXPECT_NE(train(options).w, scaled.w);
}

TEST(TrainTest, LoopAndFoldFollowTheSamePathFromRandomParameters) {
  for (TrainOptions options : {even_pairs(7), parity_cot(5)}) {
    options.init_std = 0.5;
    options = recording(options, {0, 200});
    options.method = Method::kStrings;
    const History strings = train(options);
    options.method = Method::kFold;
    const History fold = train(options);
    EXPECT_NEAR(strings.loss[1], fold.loss[1], 1e-12 * strings.loss[1]);
    EXPECT_EQ(strings.accuracy, fold.accuracy);
    for (std::size_t i = 0; i < strings.w.size(); ++i) {
      EXPECT_NEAR(strings.w[i], fold.w[i], 1e-11);
    }
  }
}

// All strings of the chain balance at zero parameters: the gradient is exactly 0.
TEST(TrainTest, ChainsAloneNeverLeaveZero) {
  for (const Method method : {Method::kStrings, Method::kFold}) {
    TrainOptions options = recording(parity_cot(4, method), {0, 500});
    options.regularizer_length = 0;
    const History history = train(options);
    EXPECT_NEAR(history.loss[1], 3.0 * std::numbers::ln2, 1e-15);
    EXPECT_EQ(history.u_norm[1], 0.0);
    EXPECT_EQ(history.w_norm[1], 0.0);
  }
}

TEST(TrainTest, TheDefaultRecordIsWhatTheStepsReach) {
  EXPECT_EQ(default_record(0), (std::vector<std::int64_t>{0}));
  EXPECT_EQ(default_record(600), (std::vector<std::int64_t>{0, 100, 600}));
  EXPECT_EQ(default_record(5000), (std::vector<std::int64_t>{0, 100, 600, 1000, 2000}));
  EXPECT_EQ(TrainOptions{}.record, default_record(TrainOptions{}.num_steps));
}

TEST(TrainTest, WIsLeftOutAboveLength512) {
  EXPECT_EQ(train(recording(even_pairs(512), {1})).w.size(), std::size_t{1024} * 1024);
  EXPECT_TRUE(train(recording(even_pairs(513), {1})).w.empty());
}

// An orthonormal basis changes nothing; these embeddings are not orthonormal but still learn.
TEST(TrainTest, EmbeddedParametersStartAtZeroAndLearn) {
  for (const Embedding embedding : {Embedding::kGaussian, Embedding::kTokenPosition}) {
    TrainOptions options = recording(even_pairs(4, Method::kFold), {0, 300});
    options.embedding = embedding;
    options.embedding_dim = 256;
    const History history = train(options);
    EXPECT_NEAR(history.loss[0], 4.0 * std::numbers::ln2, 1e-14);
    EXPECT_LT(history.loss[1], 0.9 * history.loss[0]);
    EXPECT_EQ(history.u[1].size(), 8U);
    EXPECT_EQ(history.w.size(), 64U);
  }
}

TEST(TrainTest, TheDefaultRecordIsCutToTheStepsThatAreReached) {
  TrainOptions options;
  options.num_steps = 600;
  EXPECT_EQ(train(options).step, (std::vector<std::int64_t>{0, 100, 600}));
  options.num_steps = 0;
  EXPECT_EQ(train(options).step, std::vector<std::int64_t>{0});
}

}  // namespace
}  // namespace paperlab::regular_language
