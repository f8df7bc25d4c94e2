#pragma once
/// \file
/// The learning rate of each step: warm-up, then constant, cosine, or warm-up-stable-decay.
/// Sources: cosine: Loshchilov, Hutter, arXiv:1608.03983; warm-up-stable-decay: Hu et al.,
/// arXiv:2404.06395.

#include <cstdint>

#include "paperlab/core/export.h"

namespace paperlab::train {

enum class ScheduleKind : std::uint8_t { kConstant, kCosine, kWsd };

/// constant, cosine or wsd.
PAPERLAB_API const char* name_of(ScheduleKind kind);

/// With r = learning_rate, m = min_learning_rate, w = warmup_steps, n = steps, and step from 0:
/// r (step + 1) / w while step < w, then
///   constant  r
///   cosine    m + (r - m) / 2 (1 + cos(pi (step - w) / (n - w)))
///   wsd       r, and over the last d = decay_steps steps m + (r - m) (n - step) / d
struct Schedule {
  ScheduleKind kind = ScheduleKind::kConstant;
  double learning_rate = 0.0;
  double min_learning_rate = 0.0;
  std::int64_t steps = 0;
  std::int64_t warmup_steps = 0;
  std::int64_t decay_steps = 0;  ///< wsd

  bool operator==(const Schedule&) const = default;
};

/// \throws ValueError  unless learning_rate is finite and > 0, 0 <= min_learning_rate <=
///                     learning_rate, steps >= 0, 0 <= warmup_steps, and for wsd 1 <= decay_steps
///                     and warmup_steps + decay_steps <= steps.
PAPERLAB_API void check(const Schedule& schedule);

/// The rate of `step`, 0 <= step < steps.
PAPERLAB_API double learning_rate(const Schedule& schedule, std::int64_t step);

}  // namespace paperlab::train
