// What train() refuses, and with which words.
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "paperlab/core/error.h"
#include "paperlab/regular_language/train.h"
#include "tests/paperlab/regular_language/train_cases.h"

namespace paperlab::regular_language {
namespace {

std::string message_of(const TrainOptions& options) {
  try {
    train(options);
  } catch (const ValueError& error) {
    return error.what();
  }
  return "no error";
}

// What train says about the default options after `change`.
std::string complaint(const std::function<void(TrainOptions&)>& change) {
  TrainOptions options = recording(even_pairs(4), {0, 2});
  change(options);
  return message_of(options);
}

TEST(TrainErrorTest, NumbersThatAreNotPositiveAndFiniteAreRefused) {
  for (const double bad : {0.0, -0.1, std::nan(""), double{INFINITY}}) {
    EXPECT_EQ(complaint([=](auto& o) {
                o.learning_rate = bad;
              }).find("train: learning_rate must be finite and > 0, got "),
              0U);
    EXPECT_EQ(complaint([=](auto& o) {
                o.attention_scale = bad;
              }).find("train: attention_scale must be finite and > 0, got "),
              0U);
    if (bad != 0.0) {
      EXPECT_EQ(complaint([=](auto& o) {
                  o.boost = bad;
                }).find("train: boost must be finite and >= 0, got "),
                0U);
      EXPECT_EQ(complaint([=](auto& o) {
                  o.init_std = bad;
                  o.method = Method::kFold;
                }).find("train: init_std must be finite and >= 0, got "),
                0U);
    }
  }
  EXPECT_EQ(complaint([](auto& o) { o.attention_scale = 0.25; }), "no error");
}

TEST(TrainErrorTest, StepsAndRecordsOutOfRangeAreRefused) {
  EXPECT_EQ(complaint([](auto& o) { o.boost_steps = -1; }),
            "train: boost_steps must be >= 0, got -1");
  EXPECT_EQ(complaint([](auto& o) {
              o.num_steps = -1;
              o.record = {};
            }),
            "train: num_steps must be >= 0, got -1");
  const std::string increasing = "train: record must be strictly increasing within 0..2, got ";
  EXPECT_EQ(complaint([](auto& o) { o.record = {-1}; }), increasing + "-1");
  EXPECT_EQ(complaint([](auto& o) { o.record = {0, 3}; }), increasing + "3");
  EXPECT_EQ(complaint([](auto& o) { o.record = {2, 1}; }), increasing + "1");
  EXPECT_EQ(complaint([](auto& o) { o.record = {1, 1}; }), increasing + "1");
}

TEST(TrainErrorTest, LengthsBeyondTheMethodAreRefused) {
  const auto at = [](Method method, int max_length) {
    return complaint([=](auto& o) {
      o.method = method;
      o.max_length = max_length;
    });
  };
  EXPECT_EQ(at(Method::kTwoClass, 0),
            "train: max_length must be in 1..4096 for this method, got 0");
  EXPECT_EQ(at(Method::kTwoClass, 4097),
            "train: max_length must be in 1..4096 for this method, got 4097");
  EXPECT_EQ(at(Method::kStrings, 21), "train: max_length must be in 1..20 for this method, got 21");
  EXPECT_EQ(at(Method::kFold, 25), "train: max_length must be in 1..24 for this method, got 25");
  EXPECT_EQ(at(Method::kFold, -3), "train: max_length must be in 1..24 for this method, got -3");
}

TEST(TrainErrorTest, BaseLengthsThatDoNotFitAreRefused) {
  const auto at = [](Method method, int base_length, int max_length) {
    return complaint([=](auto& o) {
      o.task = Task::kParityCot;
      o.method = method;
      o.base_length = base_length;
      o.max_length = max_length;
    });
  };
  EXPECT_EQ(at(Method::kFold, 1, 0), "train: base_length must be at least 2, got 1");
  EXPECT_EQ(at(Method::kTwoClass, -5, 6), "train: base_length must be at least 2, got -5");
  EXPECT_EQ(at(Method::kFold, 17, 32),
            "train: base_length must be in 2..16 for method fold, got 17");
  EXPECT_EQ(at(Method::kTwoClass, 4, 7),
            "train: max_length must be 2 * base_length - 2 = 6 for task parity_cot, got 7");
  EXPECT_EQ(at(Method::kStrings, 12, 22),
            "train: max_length must be in 1..20 for this method, got 22");
  EXPECT_NE(at(Method::kTwoClass, std::numeric_limits<int>::max(), 6).find("max_length"),
            std::string::npos);
  // base_length is read by parity_cot alone.
  EXPECT_EQ(complaint([](auto& o) { o.base_length = -5; }), "no error");
}

TEST(TrainErrorTest, OptionsThatDoNotFitTheMethodAreRefused) {
  EXPECT_EQ(complaint([](auto& o) { o.init_std = 0.1; }),
            "train: init_std must be 0 for method two_class, got 0.1");
  const std::string controls =
      "train: method two_class serves the paper's objectives and embedding alone, got a control";
  EXPECT_EQ(complaint([](auto& o) { o.uniform_weights = true; }), controls);
  EXPECT_EQ(complaint([](auto& o) { o.task = Task::kParity; }), controls);
  EXPECT_EQ(complaint([](auto& o) { o.embedding = Embedding::kTokenPosition; }), controls);
  EXPECT_EQ(complaint([](auto& o) {
              o.method = Method::kFold;
              o.task = Task::kParity;
            }),
            "train: task parity needs method strings, got fold");
  EXPECT_EQ(complaint([](auto& o) {
              o.method = Method::kFold;
              o.embedding = Embedding::kGaussian;
            }),
            "train: embedding_dim must be in 1..4096 for gaussian embeddings, got 0");
  EXPECT_EQ(complaint([](auto& o) {
              o = recording(parity_cot(4, Method::kFold), {0});
              o.regularizer_length = 7;
            }),
            "train: regularizer_length must be at most max_length, got 7");
}

TEST(TrainErrorTest, ALossThatIsNotFiniteEndsTheRunWithItsStep) {
  for (const Method method : {Method::kTwoClass, Method::kStrings, Method::kFold}) {
    const std::string message = complaint([=](auto& o) {
      o.method = method;
      o.learning_rate = 1e308;
      o = recording(o, {0, 20});
    });
    EXPECT_EQ(message.find("train: learning_rate must be small enough that the loss stays finite, "
                           "got a loss that is not finite at step "),
              0U)
        << message;
  }
}

TEST(TrainErrorTest, NormalizedDescentNeedsAGradient) {
  const std::string message = complaint([](auto& o) {
    o = recording(parity_cot(4, Method::kStrings), {0, 2});
    o.regularizer_length = 0;
    o.optimizer = Optimizer::kNormalizedGd;
  });
  EXPECT_EQ(message,
            "train: optimizer normalized_gd needs a gradient that is not 0, got 0 at update 1");
}

}  // namespace
}  // namespace paperlab::regular_language
