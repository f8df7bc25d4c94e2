// The update rules one at a time, on numbers that can be followed by hand.
#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "paperlab/regular_language/optimizer_internal.h"

namespace paperlab::regular_language {
namespace {

constexpr double kUStep = 0.1;
constexpr double kWStep = 0.2;

Parameters start() { return {{1.0, -2.0}, {0.5, 0.0, 3.0, -1.0}}; }
Parameters gradient() { return {{0.4, -0.8}, {0.0, 2.0, -1.0, 0.25}}; }

double norm_of(const Parameters& g) { return std::hypot(norm(g.u, {}), norm(g.w, {})); }

// The state after updates with `gradient()` times each factor.
Parameters after(Optimizer kind, const std::vector<double>& factors) {
  Parameters at = start();
  OptimizerState state(kind, at);
  for (const double factor : factors) {
    Parameters g = gradient();
    for (double& x : g.u) {
      x *= factor;
    }
    for (double& x : g.w) {
      x *= factor;
    }
    state.update(g, norm_of(g), kUStep, kWStep, at);
  }
  return at;
}

// Both arrays moved from the start by `step` times `direction(gradient)`.
template <class F>
void expect_moved(const Parameters& at, F direction) {
  const Parameters from = start();
  const Parameters g = gradient();
  for (std::size_t i = 0; i < at.u.size(); ++i) {
    EXPECT_NEAR(at.u[i], from.u[i] - kUStep * direction(g.u[i]), 1e-15);
  }
  for (std::size_t i = 0; i < at.w.size(); ++i) {
    EXPECT_NEAR(at.w[i], from.w[i] - kWStep * direction(g.w[i]), 1e-15);
  }
}

TEST(OptimizerTest, GradientDescentMovesByTheGradient) {
  expect_moved(after(Optimizer::kGd, {1.0}), [](double g) { return g; });
  expect_moved(after(Optimizer::kGd, {1.0, -0.5}), [](double g) { return 0.5 * g; });
}

TEST(OptimizerTest, HeavyBallKeepsNineTenthsOfItsMomentum) {
  expect_moved(after(Optimizer::kHeavyBall, {1.0}), [](double g) { return g; });
  // 1 + (0.9 + 2) + (0.81 + 1.8 + 0)
  expect_moved(after(Optimizer::kHeavyBall, {1.0, 2.0, 0.0}), [](double g) { return 6.51 * g; });
}

TEST(OptimizerTest, NormalizedDescentDividesByTheNormOverBoth) {
  const double norm = norm_of(gradient());
  expect_moved(after(Optimizer::kNormalizedGd, {1.0}), [=](double g) { return g / norm; });
  expect_moved(after(Optimizer::kNormalizedGd, {7.0}), [=](double g) { return g / norm; });
}

TEST(OptimizerTest, NormalizedDescentRefusesAZeroGradient) {
  Parameters at = start();
  OptimizerState state(Optimizer::kNormalizedGd, at);
  const Parameters zero{{0.0, 0.0}, {0.0, 0.0, 0.0, 0.0}};
  try {
    state.update(zero, 0.0, kUStep, kWStep, at);
    ADD_FAILURE() << "no error";
  } catch (const ValueError& error) {
    EXPECT_STREQ(
        error.what(),
        "train: optimizer normalized_gd needs a gradient that is not 0, got 0 at update 1");
  }
  EXPECT_EQ(at.u, start().u);
  EXPECT_EQ(at.w, start().w);
}

// Bias correction makes the first direction g / (|g| + eps).
TEST(OptimizerTest, AdamStartsWithTheSign) {
  expect_moved(after(Optimizer::kAdam, {1.0}), [](double g) { return g / (std::fabs(g) + 1e-8); });
}

TEST(OptimizerTest, AdamFollowsItsDefinition) {
  const std::vector<double> factors = {1.0, -2.0, 0.5};
  expect_moved(after(Optimizer::kAdam, factors), [&](double g) {
    double m = 0.0;
    double v = 0.0;
    double moved = 0.0;
    for (std::size_t t = 1; t <= factors.size(); ++t) {
      const double x = factors[t - 1] * g;
      m = 0.9 * m + 0.1 * x;
      v = 0.999 * v + 0.001 * x * x;
      const auto steps = static_cast<double>(t);
      moved +=
          m / (1.0 - std::pow(0.9, steps)) / (std::sqrt(v / (1.0 - std::pow(0.999, steps))) + 1e-8);
    }
    return moved;
  });
}

TEST(OptimizerTest, SignDescentStaysWhereTheGradientIsZero) {
  expect_moved(after(Optimizer::kSignGd, {1.0}), [](double g) {
    return g > 0.0 ? 1.0 : g < 0.0 ? -1.0 : 0.0;
  });
  EXPECT_EQ(after(Optimizer::kSignGd, {1.0}).w[0], 0.5);
}

}  // namespace
}  // namespace paperlab::regular_language
