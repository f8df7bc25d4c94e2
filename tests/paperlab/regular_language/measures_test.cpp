#include "paperlab/regular_language/measures.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "paperlab/core/error.h"

namespace paperlab::regular_language {
namespace {

using Values = std::vector<double>;
using Steps = std::vector<std::int64_t>;

TEST(MeasuresTest, AFittedLineGoesThroughPointsOnALine) {
  const Line line = fit_line({1.0, 2.0, 4.0}, {5.0, 3.0, -1.0});
  EXPECT_DOUBLE_EQ(line.slope, -2.0);
  EXPECT_DOUBLE_EQ(line.intercept, 7.0);
  EXPECT_DOUBLE_EQ(line.r_squared, 1.0);
}

TEST(MeasuresTest, AFittedLineMinimizesTheSquares) {
  // By hand: sums of squares 5 and 6.5, of products 5.5.
  const Line line = fit_line({0.0, 1.0, 2.0, 3.0}, {0.5, 1.5, 2.0, 4.0});
  EXPECT_NEAR(line.slope, 1.1, 1e-15);
  EXPECT_NEAR(line.intercept, 0.35, 1e-15);
  EXPECT_NEAR(line.r_squared, 6.05 / 6.5, 1e-15);
}

TEST(MeasuresTest, TheOnsetIsTheSteepestPointOverTheLogarithm) {
  Steps step = {0};
  Values norm = {123.0};  // step 0 has no logarithm and is passed over
  for (std::int64_t t = 1; t <= 4000; ++t) {
    step.push_back(t);
    norm.push_back(std::tanh(3.0 * std::log(static_cast<double>(t) / 576.0)));
  }
  EXPECT_EQ(log_growth_onset(step, norm), 576);
}

TEST(MeasuresTest, TheOnsetServesUnevenSteps) {
  // Growth per unit of ln t around the inner records: 1.4, 4.3, 3.7.
  EXPECT_EQ(log_growth_onset({1, 2, 4, 8, 16}, {0.0, 1.0, 2.0, 7.0, 7.1}), 4);
}

TEST(MeasuresTest, PerfectFromIsTheStartOfTheLastRunOfOnes) {
  const Steps step = {0, 10, 20, 30, 40};
  EXPECT_EQ(perfect_from(step, {0.0, 1.0, 0.9, 1.0, 1.0}), 30);
  EXPECT_EQ(perfect_from(step, {1.0, 1.0, 1.0, 1.0, 1.0}), 0);
  EXPECT_EQ(perfect_from(step, {0.0, 1.0, 1.0, 1.0, 0.999}), -1);
}

TEST(MeasuresTest, CosineOfKnownAngles) {
  EXPECT_DOUBLE_EQ(cosine({3.0, 0.0}, {5.0, 0.0}), 1.0);
  EXPECT_DOUBLE_EQ(cosine({1.0, 0.0}, {0.0, 2.0}), 0.0);
  EXPECT_DOUBLE_EQ(cosine({1.0, 1.0}, {-2.0, -2.0}), -1.0);
  EXPECT_NEAR(cosine({1.0, 0.0, 0.0}, {1.0, 1.0, 0.0}), std::sqrt(0.5), 1e-15);
}

template <class F>
std::string message_of(F call) {
  try {
    call();
  } catch (const ShapeError& error) {
    return error.what();
  }
  return "no error";
}

TEST(MeasuresTest, LengthsThatDoNotFitAreShapeErrors) {
  EXPECT_EQ(message_of([] { fit_line({1.0}, {1.0}); }),
            "fit_line: both arguments must have one length, at least 2, got 1 and 1");
  EXPECT_EQ(message_of([] { fit_line({1.0, 2.0}, {1.0}); }),
            "fit_line: both arguments must have one length, at least 2, got 2 and 1");
  EXPECT_EQ(message_of([] { log_growth_onset({1, 2, 3}, {1.0, 2.0, 3.0}); }),
            "log_growth_onset: both arguments must have one length, at least 4, got 3 and 3");
  EXPECT_EQ(message_of([] { perfect_from({1, 2}, {1.0}); }),
            "perfect_from: both arguments must have one length, at least 1, got 2 and 1");
  EXPECT_EQ(message_of([] { cosine({1.0, 2.0}, {1.0}); }),
            "cosine: both arguments must have one length, at least 1, got 2 and 1");
}

}  // namespace
}  // namespace paperlab::regular_language
