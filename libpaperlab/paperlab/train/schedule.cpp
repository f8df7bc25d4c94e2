#include "paperlab/train/schedule.h"

#include <cmath>
#include <numbers>
#include <string>

#include "paperlab/core/error.h"
#include "paperlab/train/number_text_internal.h"

namespace paperlab::train {

const char* name_of(ScheduleKind kind) {
  return kind == ScheduleKind::kCosine ? "cosine" : kind == ScheduleKind::kWsd ? "wsd" : "constant";
}

void check(const Schedule& schedule) {
  constexpr char kFunction[] = "fit";
  const double rate = schedule.learning_rate;
  const double least = schedule.min_learning_rate;
  require<ValueError>(std::isfinite(rate) && rate > 0.0, kFunction,
                      "learning_rate must be finite and > 0", number_text(rate));
  require<ValueError>(least >= 0.0 && least <= rate, kFunction,
                      "min_learning_rate must be in 0..learning_rate", number_text(least));
  require<ValueError>(schedule.steps >= 0, kFunction, "steps must be >= 0",
                      std::to_string(schedule.steps));
  require<ValueError>(schedule.warmup_steps >= 0, kFunction, "warmup_steps must be >= 0",
                      std::to_string(schedule.warmup_steps));
  if (schedule.kind == ScheduleKind::kWsd) {
    const std::int64_t room = schedule.steps - schedule.warmup_steps;
    require<ValueError>(
        schedule.decay_steps >= 1 && schedule.decay_steps <= room, kFunction,
        "decay_steps must be in 1..steps - warmup_steps (" + std::to_string(room) + ")",
        std::to_string(schedule.decay_steps));
  }
}

double learning_rate(const Schedule& schedule, std::int64_t step) {
  const auto& [kind, rate, least, steps, warmup, decay] = schedule;
  if (step < warmup) {
    return rate * static_cast<double>(step + 1) / static_cast<double>(warmup);
  }
  if (kind == ScheduleKind::kCosine) {
    const double done = static_cast<double>(step - warmup) / static_cast<double>(steps - warmup);
    return least + (rate - least) / 2.0 * (1.0 + std::cos(std::numbers::pi * done));
  }
  if (kind == ScheduleKind::kWsd && step > steps - decay) {
    return least + (rate - least) * static_cast<double>(steps - step) / static_cast<double>(decay);
  }
  return rate;
}

}  // namespace paperlab::train
