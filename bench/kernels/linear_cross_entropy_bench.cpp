// linear_cross_entropy_bench --out FILE [--machine NAME] [--repetitions N] [--threads N]
//                            [--isa NAME] [--only TEXT] [--quick]
//
// Cross-entropy of a linear map's rows without the matrix of logits, against LibTorch's linear and
// cross_entropy on the same memory, float32: forward, and forward with both gradients, beside what
// the registers could compute, and the shares of the products and of what is done with logits.
// Prints a table and writes it as JSON. Exit code 1 if a result is wrong.
//   --only TEXT   rows whose "table: case" contains TEXT
//   --quick       a small row

#include <cmath>
#include <cstdio>
#include <string>
#include <utility>
#include <vector>

#include "bench/support/eager_cross_entropy.h"
#include "bench/support/ratio_bench.h"
#include "bench/support/ratio_row.h"
#include "bench/support/roofs.h"
#include "kernels/gemm/gemm.h"
#include "kernels/linear_cross_entropy/linear_cross_entropy.h"
#include "paperlab/core/cpu_isa.h"
#include "paperlab/core/json.h"
#include "paperlab/core/parallel.h"
#include "paperlab/core/rng.h"
#include "paperlab/ops/parallel_bridge.h"

namespace paperlab::bench {
namespace {

using kernels::GemmFunction;
using kernels::LinearCrossEntropy;

constexpr double kRowSeconds = 20.0;  // past which a row has enough repetitions

struct Case {
  std::int64_t num_rows;
  std::int64_t width;
  std::int64_t vocab_size;
  double target;  // least ratio of forward with gradients
  bool is_quick = false;
};

const std::vector<Case>& all_cases() {
  static const std::vector<Case> cases = {{2048, 576, 49152, 1.15},
                                          {2048, 256, 32000, 1.15},
                                          {4096, 256, 256, 1.0},
                                          {512, 256, 256, 1.0, true}};
  return cases;
}

std::vector<float> normal(std::int64_t count, std::uint64_t stream, double scale) {
  std::vector<float> numbers(static_cast<std::size_t>(count));
  constexpr std::size_t kDifferent = 1 << 16;  // then they repeat
  for (std::size_t i = 0; i < numbers.size(); ++i) {
    numbers[i] = i < kDifferent ? static_cast<float>(scale * philox_normal(5, stream, i))
                                : numbers[i - kDifferent];
  }
  return numbers;
}

// A problem and where its results go.
class Loss {
 public:
  explicit Loss(const Case& of)
      : x_(normal(of.num_rows * of.width, 1, 1.0)),
        weight_(normal(of.vocab_size * of.width, 2, 0.05)),
        lse_(static_cast<std::size_t>(of.num_rows)),
        grad_x_(x_.size()),
        grad_weight_(weight_.size()) {
    for (std::int64_t row = 0; row < of.num_rows; ++row) {
      target_.push_back(row * 7919 % of.vocab_size);
    }
    problem_ = {kernels::DType::kFloat32,      of.num_rows, of.width,      of.vocab_size, x_.data(),
                {weight_.data(), of.width, 1}, nullptr,     target_.data()};
  }
  Loss(const Loss&) = delete;
  Loss& operator=(const Loss&) = delete;

  const LinearCrossEntropy& problem() const { return problem_; }

  void forward(const Executor& executor, GemmFunction multiply = kernels::gemm) {
    kernels::linear_cross_entropy(problem_, {&loss_, lse_.data()}, multiply, executor);
  }
  void forward_and_backward(const Executor& executor, GemmFunction multiply = kernels::gemm) {
    forward(executor, multiply);
    kernels::linear_cross_entropy_backward(
        problem_, {&grad_loss_, lse_.data(), grad_x_.data(), grad_weight_.data(), nullptr},
        multiply, executor);
  }

  // Why a result is far from the baseline's; empty: it is not. Sums of V and of N products in
  // float32, some hundred roundings each in the mean.
  std::string wrong(const EagerCrossEntropy& baseline) const {
    const double of_mean = 1.0 / static_cast<double>(problem_.num_rows);
    std::string text = far("loss", loss_, baseline.loss(), 1e-4);
    for (std::size_t i = 0; text.empty() && i < grad_x_.size(); i += 101) {
      text =
          far("grad_x", grad_x_[i], baseline.grad_x(static_cast<std::int64_t>(i)), 1e-4 * of_mean);
    }
    for (std::size_t i = 0; text.empty() && i < grad_weight_.size(); i += 101) {
      text = far("grad_weight", grad_weight_[i], baseline.grad_weight(static_cast<std::int64_t>(i)),
                 1e-3 * of_mean);
    }
    return text;
  }

 private:
  static std::string far(const char* what, double ours, double theirs, double bound) {
    const bool is_close = std::fabs(ours - theirs) <= bound + 1e-4 * std::fabs(theirs);
    return is_close ? ""
                    : std::string(what) + ' ' + std::to_string(ours) + " instead of " +
                          std::to_string(theirs);
  }

  std::vector<float> x_;
  std::vector<float> weight_;
  std::vector<std::int64_t> target_;
  std::vector<float> lse_;
  std::vector<float> grad_x_;
  std::vector<float> grad_weight_;
  float loss_ = 0.0F;
  float grad_loss_ = 1.0F;
  LinearCrossEntropy problem_;
};

double product_seconds = 0.0;

void timed_gemm(const kernels::Gemm& problem, const Executor& executor) {
  product_seconds += seconds_of([&] { kernels::gemm(problem, executor); });
}

// Of the products, and of what is done with logits.
std::vector<std::pair<std::string, double>> shares_of(Loss& loss, bool has_gradients,
                                                      const Executor& executor) {
  product_seconds = 0.0;
  const double whole = seconds_of([&] {
    has_gradients ? loss.forward_and_backward(executor, timed_gemm)
                  : loss.forward(executor, timed_gemm);
  });
  return {{"products", product_seconds / whole}, {"logits", 1.0 - product_seconds / whole}};
}

class Bench {
 public:
  explicit Bench(const RatioArguments& arguments)
      : arguments_(arguments), fma_roof_gflops_(fma_roof_float32_gflops(cpu_isa())) {}

  std::vector<RatioRow> run() {
    std::vector<RatioRow> rows;
    for (const bool has_gradients : {true, false}) {
      for (const Case& of : all_cases()) {
        for (const int num_threads : arguments_.thread_counts()) {
          RatioRow row = row_of(of, has_gradients, num_threads);
          if (!arguments_.wants(row, of.is_quick)) {
            continue;
          }
          measure(of, has_gradients, row);
          add_row(row, rows);
        }
      }
    }
    return rows;
  }

  std::string note() const {
    char line[300];
    std::snprintf(line, sizeof(line),
                  "Baseline: at::linear and at::cross_entropy_loss. Roof of one thread: %.0f "
                  "GFLOP/s. GFLOP/s count the products that the baseline needs, one forward and "
                  "two for the gradients; ours does the first one twice.",
                  fma_roof_gflops_);
    return line;
  }

 private:
  RatioRow row_of(const Case& of, bool has_gradients, int num_threads) const {
    RatioRow row;
    row.table = has_gradients ? "forward and gradients, float32" : "forward, float32";
    row.name = "N " + std::to_string(of.num_rows) + ", D " + std::to_string(of.width) + ", V " +
               std::to_string(of.vocab_size) + ", " + threads_text(num_threads);
    row.backend = "at::linear + at::cross_entropy_loss";
    row.num_threads = num_threads;
    row.target = has_gradients ? of.target : 1.0;
    row.flops =
        (has_gradients ? 6.0 : 2.0) * static_cast<double>(of.num_rows * of.width * of.vocab_size);
    row.fma_roof_gflops = num_threads * fma_roof_gflops_;
    return row;
  }

  void measure(const Case& of, bool has_gradients, RatioRow& row) const {
    const Executor& threads = ops::torch_executor();
    set_cross_entropy_threads(row.num_threads);
    Loss loss(of);
    EagerCrossEntropy baseline(loss.problem());
    loss.forward_and_backward(threads);
    baseline.forward_and_backward();
    row.wrong = loss.wrong(baseline);
    if (!row.wrong.empty()) {
      return;
    }
    const std::vector<Contestant> contestants = {
        {[] {},
         [&] { has_gradients ? loss.forward_and_backward(threads) : loss.forward(threads); }},
        {[] {}, [&] { has_gradients ? baseline.forward_and_backward() : baseline.forward(); }}};
    const auto timings = time_interleaved(contestants, arguments_.num_repetitions, kRowSeconds);
    row.ours = timings[0];
    row.baseline = timings[1];
    row.shares = shares_of(loss, has_gradients, threads);
  }

  const RatioArguments& arguments_;
  double fma_roof_gflops_;
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
