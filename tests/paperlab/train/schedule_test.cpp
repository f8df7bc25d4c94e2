#include "paperlab/train/schedule.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <numbers>

#include "paperlab/core/error.h"

namespace paperlab::train {
namespace {

constexpr double kRate = 0.3;

Schedule schedule(ScheduleKind kind) { return {kind, kRate, 0.1, 20, 4, 5}; }

TEST(LearningRate, WarmsUpInEachSchedule) {
  for (const auto kind : {ScheduleKind::kConstant, ScheduleKind::kCosine, ScheduleKind::kWsd}) {
    for (int step = 0; step < 4; ++step) {
      EXPECT_DOUBLE_EQ(learning_rate(schedule(kind), step), kRate * (step + 1) / 4);
    }
    EXPECT_DOUBLE_EQ(learning_rate(schedule(kind), 4), kRate);
  }
}

TEST(LearningRate, FollowsTheFormulas) {
  for (int step = 4; step < 20; ++step) {
    const double turn = std::numbers::pi * (step - 4) / 16;
    EXPECT_DOUBLE_EQ(learning_rate(schedule(ScheduleKind::kConstant), step), kRate);
    EXPECT_DOUBLE_EQ(learning_rate(schedule(ScheduleKind::kCosine), step),
                     0.1 + 0.1 * (1 + std::cos(turn)));
    EXPECT_DOUBLE_EQ(learning_rate(schedule(ScheduleKind::kWsd), step),
                     step < 15 ? kRate : 0.1 + 0.2 * (20 - step) / 5);
  }
}

TEST(LearningRate, AWarmUpMayBeLongerThanTheRun) {
  Schedule given = schedule(ScheduleKind::kCosine);
  given.warmup_steps = 40;
  check(given);
  EXPECT_DOUBLE_EQ(learning_rate(given, 19), kRate * 20 / 40);
}

TEST(ScheduleCheck, RefusesWhatCannotBeMeant) {
  const auto refused = [](auto change) {
    Schedule given = schedule(ScheduleKind::kWsd);
    check(given);
    change(given);
    EXPECT_THROW(check(given), ValueError);
  };
  refused([](Schedule& s) { s.learning_rate = 0.0; });
  refused([](Schedule& s) { s.learning_rate = std::numeric_limits<double>::quiet_NaN(); });
  refused([](Schedule& s) { s.learning_rate = std::numeric_limits<double>::infinity(); });
  refused([](Schedule& s) { s.min_learning_rate = -0.1; });
  refused([](Schedule& s) { s.min_learning_rate = 0.4; });
  refused([](Schedule& s) { s.min_learning_rate = std::numeric_limits<double>::quiet_NaN(); });
  refused([](Schedule& s) { s.steps = -1; });
  refused([](Schedule& s) { s.warmup_steps = -1; });
  refused([](Schedule& s) { s.decay_steps = 0; });
  refused([](Schedule& s) { s.decay_steps = 17; });
}

}  // namespace
}  // namespace paperlab::train
