#include "bench/support/timing.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <thread>

namespace paperlab::bench {
namespace {

constexpr double kRepetition_us = 10000.0;
constexpr auto kPause = std::chrono::milliseconds(4);

double run_us(const std::function<void()>& step, int count) {
  const auto begin = std::chrono::steady_clock::now();
  for (int i = 0; i < count; ++i) {
    step();
  }
  const std::chrono::duration<double, std::micro> passed = std::chrono::steady_clock::now() - begin;
  return passed.count();
}

// Steps that fill a repetition.
int num_steps(const Contestant& contestant) {
  contestant.reset();
  int count = 1;
  while (count < (1 << 20)) {
    const double us = run_us(contestant.step, count);
    if (us > kRepetition_us / 4.0) {
      return std::max(1, static_cast<int>(std::lround(kRepetition_us / us * count)));
    }
    count *= 2;
  }
  return count;
}

double percentile(const std::vector<double>& sorted, double share) {
  const double at = share * static_cast<double>(sorted.size() - 1);
  const auto below = static_cast<std::size_t>(at);
  const std::size_t above = std::min(below + 1, sorted.size() - 1);
  return sorted[below] + (at - static_cast<double>(below)) * (sorted[above] - sorted[below]);
}

}  // namespace

std::vector<Timing> time_interleaved(const std::vector<Contestant>& contestants,
                                     int num_repetitions) {
  std::vector<int> counts;
  for (const Contestant& contestant : contestants) {
    counts.push_back(num_steps(contestant));
  }
  std::vector<std::vector<double>> us(contestants.size());
  for (int repetition = 0; repetition < num_repetitions; ++repetition) {
    for (std::size_t i = 0; i < contestants.size(); ++i) {
      std::this_thread::sleep_for(kPause);
      contestants[i].reset();
      run_us(contestants[i].step, std::max(1, counts[i] / 8));
      us[i].push_back(run_us(contestants[i].step, counts[i]) / counts[i]);
    }
  }
  std::vector<Timing> timings;
  for (std::vector<double>& times : us) {
    std::sort(times.begin(), times.end());
    timings.push_back({percentile(times, 0.5), percentile(times, 0.1), percentile(times, 0.9)});
  }
  return timings;
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return percentile(values, 0.5);
}

}  // namespace paperlab::bench
