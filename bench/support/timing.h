#pragma once
// Medians of interleaved repetitions: what is compared runs in the same process and the same
// minute.

#include <functional>
#include <limits>
#include <vector>

namespace paperlab::bench {

struct Contestant {
  std::function<void()> reset;  // before each repetition, not timed
  std::function<void()> step;
};

struct Timing {
  double median_us = 0.0;  // of one step
  double low_us = 0.0;     // 10th percentile of the repetitions
  double high_us = 0.0;    // 90th
  double cpu_us = 0.0;     // median CPU time of all threads, which other processes hardly disturb
  int num_repetitions = 0;
  double spread_percent() const { return 100.0 * (high_us - low_us) / median_us; }
};

// Repetitions take turns between the contestants; each is as many steps as fill some milliseconds,
// after warm-up steps and a pause in which other threads fall asleep. Steps that take longer than
// kLongStepMicroseconds are not warmed up again. After three repetitions none begins past `limit_s`
// seconds.
constexpr double kLongStepMicroseconds = 50000.0;
std::vector<Timing> time_interleaved(const std::vector<Contestant>& contestants,
                                     int num_repetitions,
                                     double limit_s = std::numeric_limits<double>::infinity());

double median(std::vector<double> values);

// Wall time.
double seconds_of(const std::function<void()>& work);

}  // namespace paperlab::bench
