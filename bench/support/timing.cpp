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
constexpr int kLeastRepetitions = 3;
constexpr double kIdleMicroseconds = 100.0;  // of CPU time during a pause
constexpr int kMostPauses = 50;

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

// Until the threads that the last contestant left spinning are asleep: an OpenMP runtime's worker
// spins for some milliseconds.
void wait_for_sleep() {
  constexpr auto kPause = std::chrono::milliseconds(1);
  for (int pause = 0; pause < kMostPauses; ++pause) {
    const double cpu_begin = cpu_now_us();
    std::this_thread::sleep_for(kPause);
    if (cpu_now_us() - cpu_begin < kIdleMicroseconds) {
      return;
    }
  }
}

// Steps of a repetition, and those before it that are not timed.
struct Steps {
  int timed;
  int warm_up;
};

// As many as fill a repetition; run once at least.
Steps steps_of(const Contestant& contestant) {
  contestant.reset();
  int count = 1;
  double us = run(contestant.step, count).us;
  while (us <= kRepetitionMicroseconds / 4.0 && count < (1 << 19)) {
    count *= 2;
    us = run(contestant.step, count).us;
  }
  const double step_us = us / count;
  const int timed = std::max(1, static_cast<int>(std::lround(kRepetitionMicroseconds / step_us)));
  return {timed, step_us > kLongStepMicroseconds ? 0 : std::max(1, timed / 8)};
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

double seconds_of(const std::function<void()>& work) {
  const auto begin = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

std::vector<Timing> time_interleaved(const std::vector<Contestant>& contestants,
                                     int num_repetitions, double limit_s) {
  std::vector<Steps> steps;
  steps.reserve(contestants.size());
  for (const Contestant& contestant : contestants) {
    steps.push_back(steps_of(contestant));
  }
  std::vector<std::vector<double>> us(contestants.size());
  std::vector<std::vector<double>> cpu_us(contestants.size());
  const auto begin = std::chrono::steady_clock::now();
  for (int repetition = 0; repetition < num_repetitions; ++repetition) {
    const std::chrono::duration<double> passed = std::chrono::steady_clock::now() - begin;
    if (repetition >= kLeastRepetitions && passed.count() > limit_s) {
      break;
    }
    for (std::size_t i = 0; i < contestants.size(); ++i) {
      wait_for_sleep();
      contestants[i].reset();
      run(contestants[i].step, steps[i].warm_up);
      const Duration duration = run(contestants[i].step, steps[i].timed);
      us[i].push_back(duration.us / steps[i].timed);
      cpu_us[i].push_back(duration.cpu_us / steps[i].timed);
    }
  }
  std::vector<Timing> timings;
  timings.reserve(us.size());
  for (std::size_t i = 0; i < us.size(); ++i) {
    std::sort(us[i].begin(), us[i].end());
    timings.push_back({percentile(us[i], 0.5), percentile(us[i], 0.1), percentile(us[i], 0.9),
                       median(cpu_us[i]), static_cast<int>(us[i].size())});
  }
  return timings;
}

}  // namespace paperlab::bench
