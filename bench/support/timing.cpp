#include "bench/support/timing.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <ctime>
#include <thread>

namespace paperlab::bench {
namespace {

constexpr double kRepetitionMicroseconds = 10000.0;
constexpr auto kPause = std::chrono::milliseconds(4);

double cpu_now_us() {
  timespec now{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
  return 1e6 * static_cast<double>(now.tv_sec) + 1e-3 * static_cast<double>(now.tv_nsec);
}

struct Duration {
  double us;
  double cpu_us;
};

Duration run(const std::function<void()>& step, int count) {
  const double cpu_begin = cpu_now_us();
  const auto begin = std::chrono::steady_clock::now();
  for (int i = 0; i < count; ++i) {
    step();
  }
  const std::chrono::duration<double, std::micro> passed = std::chrono::steady_clock::now() - begin;
  return {passed.count(), cpu_now_us() - cpu_begin};
}

// Steps that fill a repetition.
int num_steps(const Contestant& contestant) {
  contestant.reset();
  int count = 1;
  while (count < (1 << 20)) {
    const double us = run(contestant.step, count).us;
    if (us > kRepetitionMicroseconds / 4.0) {
      return std::max(1, static_cast<int>(std::lround(kRepetitionMicroseconds / us * count)));
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

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return percentile(values, 0.5);
}

std::vector<Timing> time_interleaved(const std::vector<Contestant>& contestants,
                                     int num_repetitions) {
  std::vector<int> counts;
  counts.reserve(contestants.size());
  for (const Contestant& contestant : contestants) {
    counts.push_back(num_steps(contestant));
  }
  std::vector<std::vector<double>> us(contestants.size());
  std::vector<std::vector<double>> cpu_us(contestants.size());
  for (int repetition = 0; repetition < num_repetitions; ++repetition) {
    for (std::size_t i = 0; i < contestants.size(); ++i) {
      std::this_thread::sleep_for(kPause);
      contestants[i].reset();
      run(contestants[i].step, std::max(1, counts[i] / 8));
      const Duration passed = run(contestants[i].step, counts[i]);
      us[i].push_back(passed.us / counts[i]);
      cpu_us[i].push_back(passed.cpu_us / counts[i]);
    }
  }
  std::vector<Timing> timings;
  timings.reserve(us.size());
  for (std::size_t i = 0; i < us.size(); ++i) {
    std::sort(us[i].begin(), us[i].end());
    timings.push_back({percentile(us[i], 0.5), percentile(us[i], 0.1), percentile(us[i], 0.9),
                       median(cpu_us[i])});
  }
  return timings;
}

}  // namespace paperlab::bench
