#include "bench/support/roofs.h"

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <ctime>
#include <fstream>
#include <numeric>
#include <vector>

#include "bench/support/probes.h"

namespace paperlab::bench {
namespace {

constexpr double kRun_s = 3e-3;    // least time of a run
constexpr double kProbe_s = 0.25;  // of all runs

template <class T>
using Rounds = double (*)(long rounds, const T* start, T* sink);

// Of the three namespaces' functions, which are named alike, the one of `isa`.
template <class F>
F select(CpuIsa isa, F generic, F avx2, F avx512) {
  return isa == CpuIsa::kAvx512 ? avx512 : isa == CpuIsa::kAvx2 ? avx2 : generic;
}

// CPU time, which doesn't pass while another process has the core.
double thread_cpu_s() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

template <class T>
double best_gflops(Rounds<T> rounds) {
  std::vector<T> start(kNumStart);
  std::iota(start.begin(), start.end(), T{1});
  volatile T kept = 0;
  double best = 0.0;
  long count = 1000;
  for (double total_s = 0.0; total_s < kProbe_s;) {
    T sink = 0;
    const double begin_s = thread_cpu_s();
    const double flops = rounds(count, start.data(), &sink);
    const double passed_s = thread_cpu_s() - begin_s;
    kept = sink;
    total_s += passed_s;
    if (passed_s < kRun_s) {
      count *= 4;
    } else {
      best = std::max(best, flops / passed_s * 1e-9);
    }
  }
  return kept == 0 ? 0.0 : best;
}

double pass_gb_s(const Executor& executor, const void* data, std::size_t bytes, ReadForm form) {
  const auto begin = std::chrono::steady_clock::now();
  read_memory(executor, data, bytes, form);
  const std::chrono::duration<double> passed = std::chrono::steady_clock::now() - begin;
  return static_cast<double>(bytes) / passed.count() * 1e-9;
}

}  // namespace

double fma_roof_gflops(CpuIsa isa) {
  return best_gflops(
      select<Rounds<double>>(isa, generic::fma_rounds, avx2::fma_rounds, avx512::fma_rounds));
}

double fma_roof_float32_gflops(CpuIsa isa) {
  return best_gflops(
      select<Rounds<float>>(isa, generic::fma_rounds, avx2::fma_rounds, avx512::fma_rounds));
}

double dot_roof_bfloat16_gflops() {
  return cpu_has_bfloat16() ? best_gflops<float>(avx512::dot_rounds) : 0.0;
}

std::size_t last_level_cache_bytes() {
  std::ifstream file("/sys/devices/system/cpu/cpu0/cache/index3/size");
  std::size_t kibibytes = 0;
  return file >> kibibytes ? kibibytes << 10U : std::size_t{32} << 20U;  // "32768K"
}

void read_memory(const Executor& executor, const void* data, std::size_t bytes, ReadForm form) {
  const auto read_sum =
      select(detected_cpu_isa(), generic::read_sum, avx2::read_sum, avx512::read_sum);
  const std::size_t num_tasks = static_cast<std::size_t>(executor.num_workers());
  const std::size_t share = bytes / sizeof(float) / num_tasks / 16 * 16;
  parallel_for(executor, static_cast<std::int64_t>(num_tasks), [&](std::int64_t task, int) {
    const float* begin = static_cast<const float*>(data) + static_cast<std::size_t>(task) * share;
    [[maybe_unused]] volatile float kept =
        read_sum(begin, share, form.num_streams, form.prefetch_bytes);
  });
}

ReadRoof read_roof(const Executor& executor, const void* data, std::size_t bytes) {
  ReadRoof best;
  for (int pass = 0; pass < 3; ++pass) {
    for (const int num_streams : {1, 2, 4, 8}) {
      for (const std::size_t prefetch_bytes : {0, 1024, 4096}) {
        const ReadForm form{num_streams, prefetch_bytes};
        const double gb_s = pass_gb_s(executor, data, bytes, form);
        best = gb_s > best.gb_s ? ReadRoof{form, gb_s} : best;
      }
    }
  }
  return best;
}

double copy_roof_gb_s(const Executor& executor, void* data, std::size_t bytes) {
  const auto copy = select(detected_cpu_isa(), generic::copy_past_caches, avx2::copy_past_caches,
                           avx512::copy_past_caches);
  constexpr std::size_t kPiece = std::size_t{1} << 16U;  // floats
  auto* from = static_cast<float*>(data);
  const std::size_t num_pieces = bytes / sizeof(float) / 2 / kPiece;
  double best = 0.0;
  for (int pass = 0; pass < 4; ++pass) {
    for (const std::size_t prefetch_bytes : {0, 1024, 4096}) {
      const auto begin = std::chrono::steady_clock::now();
      parallel_for(executor, static_cast<std::int64_t>(num_pieces), [&](std::int64_t task, int) {
        const std::size_t at = static_cast<std::size_t>(task) * kPiece;
        copy(from + at, from + num_pieces * kPiece + at, kPiece, prefetch_bytes);
      });
      const std::chrono::duration<double> passed = std::chrono::steady_clock::now() - begin;
      const auto copied = static_cast<double>(2 * num_pieces * kPiece * sizeof(float));
      best = std::max(best, copied / passed.count() * 1e-9);
    }
  }
  return best;
}

}  // namespace paperlab::bench
