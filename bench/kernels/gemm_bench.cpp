// gemm_bench --out FILE [--machine NAME] [--repetitions N] [--threads N] [--isa NAME]
//            [--only TEXT] [--quick]
//
// Matrix products against LibTorch's linear on the same memory: forward and both gradients with
// many rows in float32, beside what the registers could compute; few rows with weights from memory,
// beside what memory could deliver. With many rows also the shares of packing and of multiplying.
// Prints a table and writes it as JSON. Exit code 1 if a result is wrong.
//   --only TEXT   rows whose "table: case" contains TEXT
//   --quick       a few small rows

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "bench/support/eager_linear.h"
#include "bench/support/ratio_bench.h"
#include "bench/support/ratio_row.h"
#include "bench/support/roofs.h"
#include "kernels/common/number.h"
#include "kernels/gemm/gemm.h"
#include "paperlab/core/cpu_isa.h"
#include "paperlab/core/json.h"
#include "paperlab/core/parallel.h"
#include "paperlab/core/rng.h"

namespace paperlab::bench {
namespace {

using kernels::DType;
using kernels::Gemm;

constexpr double kRowSeconds = 1.5;  // past which a row has enough repetitions
constexpr double kProfileSeconds = 0.2;
constexpr std::size_t kArenaBytes = std::size_t{256} << 20U;

struct Case {
  std::string table;
  DType dtype;
  std::int64_t m;
  std::int64_t n;
  std::int64_t k;
  bool is_a_turned = false;  // terms in its lines instead of rows
  bool is_b_turned = false;
  bool is_from_memory = false;  // B of each step is another one
  double target = 1.0;
  bool is_quick = false;
};

std::vector<Case> all_cases() {
  struct Weight {
    std::int64_t n;
    std::int64_t k;
  };
  const std::vector<Weight> weights = {{576, 576}, {1536, 576}, {576, 1536},
                                       {256, 256}, {688, 256},  {256, 688}};
  std::vector<Case> cases;
  for (const auto& [n, k] : weights) {
    for (const std::int64_t m : {64, 512, 2048}) {
      cases.push_back({"forward, float32", DType::kFloat32, m, n, k, false, false, false, 1.6,
                       m == 64 && n == 576});
    }
  }
  cases.push_back({"forward, float32", DType::kFloat32, 512, 49152, 576, false, false, false, 1.6});
  for (const auto& [n, k] : weights) {
    cases.push_back({"gradient of the input, float32", DType::kFloat32, 512, k, n, false, true,
                     false, 1.6, k == 256});
    for (const std::int64_t m : {512, 4096}) {
      cases.push_back({"gradient of the weight, float32", DType::kFloat32, n, k, m, true, true,
                       false, 1.6, k == 256 && m == 512});
    }
  }
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16}) {
    const bool is_float32 = dtype == DType::kFloat32;
    for (const auto& [n, k] : {Weight{576, 576}, {1536, 576}, {576, 1536}, {49152, 576}}) {
      for (const std::int64_t m : {1, 4, 8}) {
        cases.push_back({is_float32 ? "few rows, float32" : "few rows, bfloat16", dtype, m, n, k,
                         false, false, true, 1.0, m == 1 && n == 1536});
      }
    }
  }
  return cases;
}

// Memory that begins at a cache line, filled with normal numbers.
class Numbers {
 public:
  Numbers(DType dtype, std::size_t count, std::uint64_t stream)
      : dtype_(dtype), memory_(count * size() + 64) {
    constexpr std::size_t kDifferent = 1 << 16;  // then they repeat
    for (std::size_t i = 0; i < std::min(count, kDifferent); ++i) {
      kernels::store_number(data(), dtype, static_cast<std::int64_t>(i),
                            philox_normal(5, stream, i));
    }
    for (std::size_t i = kDifferent; i < count; i += kDifferent) {
      std::copy_n(data(), std::min(count - i, kDifferent) * size(), data() + i * size());
    }
  }
  std::size_t size() const { return dtype_ == DType::kFloat32 ? 4 : 2; }
  char* data() {
    return memory_.data() + (64 - reinterpret_cast<std::uintptr_t>(memory_.data()) % 64) % 64;
  }

 private:
  DType dtype_;
  std::vector<char> memory_;
};

// The products of a row of the table: one, or as many as there are weights.
class Products {
 public:
  explicit Products(const Case& of)
      : a_(of.dtype, static_cast<std::size_t>(of.m * of.k), 1),
        b_(of.dtype, num_weights(of) * static_cast<std::size_t>(of.n * of.k), 2),
        c_(of.dtype, static_cast<std::size_t>(of.m * of.n), 3) {
    for (std::size_t i = 0; i < num_weights(of); ++i) {
      const char* b = b_.data() + i * b_.size() * static_cast<std::size_t>(of.n * of.k);
      Gemm problem{of.dtype, of.m, of.n, of.k, {}, {}, nullptr, c_.data(), of.n};
      problem.a = {a_.data(), of.is_a_turned ? 1 : of.k, of.is_a_turned ? of.m : 1};
      problem.b = {b, of.is_b_turned ? 1 : of.k, of.is_b_turned ? of.n : 1};
      problems_.push_back(problem);
      baselines_.emplace_back(problem);
    }
  }

  // As many as do not fit into the last-level cache.
  static std::size_t num_weights(const Case& of) {
    const auto bytes =
        static_cast<std::size_t>(of.n * of.k * (of.dtype == DType::kFloat32 ? 4 : 2));
    return of.is_from_memory ? kArenaBytes / bytes + 1 : 1;
  }

  std::size_t count() const { return problems_.size(); }
  const Gemm& problem(std::size_t i) const { return problems_[i]; }
  EagerLinear& baseline(std::size_t i) { return baselines_[i]; }

 private:
  Numbers a_;
  Numbers b_;
  Numbers c_;
  std::vector<Gemm> problems_;
  std::vector<EagerLinear> baselines_;
};

// Why elements of ours or of the baseline are wrong; empty: they are right. The exact sum of some
// elements, and gamma(K + 2) of the sum of absolute values.
std::string wrong_of(const Gemm& problem, const EagerLinear& baseline) {
  const auto& [dtype, num_rows, num_columns, num_k, a, b, bias, c, c_stride] = problem;
  for (std::int64_t i = 0; i < 500; ++i) {
    const std::int64_t m = i * 7 % num_rows;
    const std::int64_t n = i * 101 % num_columns;
    double exact = 0.0;
    double norm = 0.0;
    for (std::int64_t k = 0; k < num_k; ++k) {
      const double term = kernels::load_number(a.data, dtype, m * a.row_stride + k * a.k_stride) *
                          kernels::load_number(b.data, dtype, n * b.row_stride + k * b.k_stride);
      exact += term;
      norm += std::fabs(term);
    }
    const double rounding = dtype == DType::kBFloat16 ? 0x1.1p-8 * std::fabs(exact) : 0.0;
    const double bound = 0x1.1p-24 * static_cast<double>(num_k + 2) * norm + rounding;
    const double ours = kernels::load_number(c, dtype, m * c_stride + n);
    for (const double value : {ours, baseline.at(m, n)}) {
      if (!(std::fabs(value - exact) <= bound)) {
        return "C[" + std::to_string(m) + ", " + std::to_string(n) + "] " + std::to_string(value) +
               " instead of " + std::to_string(exact);
      }
    }
  }
  return "";
}

// Calls step(i) for the next i of `count` each time.
Contestant rotating(std::size_t count, std::function<void(std::size_t)> step) {
  return {[] {},
          [count, step = std::move(step), i = std::size_t{0}]() mutable {
            step(i);
            i = i + 1 == count ? 0 : i + 1;
          }};
}

// The loops of a product with many rows take turns: packing, multiplying.
class LoopTimer final : public Executor {
 public:
  explicit LoopTimer(const Executor& on) : on_(on) {}

  void run(std::int64_t num_tasks, Body body, void* context) const override {
    seconds_[num_loops_++ % 2] += seconds_of([&] { on_.run(num_tasks, body, context); });
  }
  int num_workers() const override { return on_.num_workers(); }

  double packing() const { return seconds_[0]; }
  double multiplying() const { return seconds_[1]; }

 private:
  const Executor& on_;
  mutable std::array<double, 2> seconds_{};
  mutable std::size_t num_loops_ = 0;
};

std::vector<std::pair<std::string, double>> shares_of(const Gemm& problem, const Executor& on) {
  const LoopTimer timer(on);
  double whole = 0.0;
  for (int i = 0; i < 100 && (i < 3 || whole < kProfileSeconds); ++i) {
    whole += seconds_of([&] { kernels::gemm(problem, timer); });
  }
  return {{"packing", timer.packing() / whole}, {"multiplying", timer.multiplying() / whole}};
}

class Bench {
 public:
  explicit Bench(const RatioArguments& arguments)
      : arguments_(arguments), fma_roof_gflops_(fma_roof_float32_gflops(cpu_isa())) {}

  std::vector<RatioRow> run() {
    std::vector<RatioRow> rows;
    for (const Case& of : all_cases()) {
      for (const int num_threads : arguments_.thread_counts()) {
        RatioRow row = row_of(of, num_threads);
        if (!arguments_.wants(row, of.is_quick)) {
          continue;
        }
        measure(of, row);
        add_row(row, rows);
      }
    }
    return rows;
  }

  std::string note() const {
    char line[200];
    std::snprintf(line, sizeof(line), "Baseline: at::linear. Roof of one thread: %.0f GFLOP/s.",
                  fma_roof_gflops_);
    std::string text = line;
    for (const auto& [num_threads, roof] : read_roofs_) {
      std::snprintf(line, sizeof(line), " Best read rate with %d threads: %.1f GB/s.", num_threads,
                    roof.gb_s);
      text += line;
    }
    return text;
  }

 private:
  RatioRow row_of(const Case& of, int num_threads) const {
    RatioRow row;
    row.table = of.table;
    row.name = "M " + std::to_string(of.m) + ", N " + std::to_string(of.n) + ", K " +
               std::to_string(of.k) + ", " + threads_text(num_threads);
    row.backend = "at::linear";
    row.num_threads = num_threads;
    row.target = of.target;
    row.share_target = 0.8;
    if (of.is_from_memory) {
      row.bytes = static_cast<double>(of.n * of.k * (of.dtype == DType::kFloat32 ? 4 : 2));
    } else {
      row.flops = 2.0 * static_cast<double>(of.m * of.n * of.k);
      row.fma_roof_gflops = num_threads * fma_roof_gflops_;
    }
    return row;
  }

  void measure(const Case& of, RatioRow& row) {
    const ThreadPool pool(row.num_threads);
    set_linear_threads(row.num_threads);
    Products products(of);
    const auto ours = [&](std::size_t i) { kernels::gemm(products.problem(i), pool); };
    const auto theirs = [&](std::size_t i) { products.baseline(i).run(); };
    ours(0);
    theirs(0);
    row.wrong = wrong_of(products.problem(0), products.baseline(0));
    if (!row.wrong.empty()) {
      return;
    }
    std::vector<Contestant> contestants = {rotating(products.count(), ours),
                                           rotating(products.count(), theirs)};
    if (of.is_from_memory) {
      const char* begin = static_cast<const char*>(products.problem(0).b.data);
      const auto bytes = static_cast<std::size_t>(row.bytes);
      ReadRoof& roof = read_roofs_[row.num_threads];
      roof = roof.gb_s > 0.0 ? roof : read_roof(pool, begin, bytes * products.count());
      contestants.push_back(rotating(products.count(), [&, begin, bytes](std::size_t i) {
        read_memory(pool, begin + i * bytes, bytes, roof.form);
      }));
    }
    const auto timings = time_interleaved(contestants, arguments_.num_repetitions, kRowSeconds);
    row.ours = timings[0];
    row.baseline = timings[1];
    if (!of.is_from_memory) {
      row.shares = shares_of(products.problem(0), pool);
    } else {
      row.read_probe = timings[2];
      row.memory_roof_gb_s =
          std::max(read_roofs_[row.num_threads].gb_s, row.bytes / timings[2].low_us * 1e-3);
    }
  }

  const RatioArguments& arguments_;
  double fma_roof_gflops_;
  std::map<int, ReadRoof> read_roofs_;
};

std::vector<RatioRow> measure_all(const RatioArguments& arguments, Json& result) {
  Bench of(arguments);
  const std::vector<RatioRow> rows = of.run();
  result["note"] = of.note();
  return rows;
}

}  // namespace
}  // namespace paperlab::bench

int main(int argc, char** argv) {
  return paperlab::bench::run_ratio_bench(argc, argv, paperlab::bench::measure_all);
}
