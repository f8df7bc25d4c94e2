// depth_aggregate_bench --out FILE [--machine NAME] [--repetitions N] [--threads N]
//                       [--isa NAME] [--only TEXT] [--quick]
//
// The streams of a decoder's blocks as sums over the states of all blocks before them, for a pass
// over all blocks, float32: the sums with given weights and with weights that are generated, and
// their gradients, added up in one buffer. Beside it the ways that LibTorch has, and what the
// memory allows: copying past the caches, on the traffic that nothing can do without. Prints a
// table and writes it as JSON. Exit code 1 if a result is wrong.
//   --only TEXT   rows whose "table: case" contains TEXT
//   --quick       a small row

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <map>
#include <string>
#include <vector>

#include "bench/support/eager_depth.h"
#include "bench/support/ratio_bench.h"
#include "bench/support/ratio_row.h"
#include "bench/support/roofs.h"
#include "kernels/common/lines.h"
#include "kernels/depth_aggregate/depth_aggregate.h"
#include "kernels/gemm/gemm.h"
#include "paperlab/core/cpu_isa.h"
#include "paperlab/core/json.h"
#include "paperlab/core/parallel.h"
#include "paperlab/core/rng.h"
#include "paperlab/ops/parallel_bridge.h"

namespace paperlab::bench {
namespace {

using kernels::DType;

constexpr double kRowSeconds = 12.0;  // past which a case has enough repetitions

enum class Work { kSum, kSumGradients, kStep, kStepGradients };

struct Table {
  Work work;
  const char* name;
  double share_target;
  // Of the large cases: the loop, its form in place, and the best of all but the loop.
  double loop_target;
  double addcmul_target;
  double best_target;
  std::vector<EagerDepthForm> forms;
};

const std::vector<Table>& all_tables() {
  using enum EagerDepthForm;
  // The same goals with and without the weights' generation, which is the kernel's own.
  static const std::vector<EagerDepthForm> forms = {kLoop, kAddcmul, kBmm, kStack, kEinsum};
  static const std::vector<Table> tables = {
      {Work::kSum, "sums", 0.7, 5.0, 2.5, 1.4, forms},
      {Work::kSumGradients, "gradients of sums", 0.55, 4.0, 2.5, 2.5, forms},
      {Work::kStep, "weights and sums", 0.7, 5.0, 2.5, 1.4, forms},
      {Work::kStepGradients, "gradients of weights and sums", 0.55, 4.0, 2.5, 2.5, forms},
  };
  return tables;
}

struct Case {
  std::int64_t num_blocks;
  std::int64_t width;
  std::int64_t num_tokens;
  bool has_targets;
  bool is_quick = false;
};

const std::vector<Case>& all_cases() {
  static const std::vector<Case> cases = {{24, 1024, 2048, true},
                                          {24, 1024, 512, true},
                                          {8, 256, 4096, false},
                                          {4, 256, 512, false, true}};
  return cases;
}

float* floats(const kernels::Lines& lines) { return reinterpret_cast<float*>(lines.get()); }

kernels::Lines normal(std::int64_t count, std::uint64_t stream, double scale) {
  kernels::Lines lines = kernels::take_lines(count * static_cast<std::int64_t>(sizeof(float)));
  constexpr std::int64_t kDifferent = 65521;  // then they repeat
  for (std::int64_t i = 0; i < count; ++i) {
    floats(lines)[i] =
        i < kDifferent
            ? static_cast<float>(scale * philox_normal(9, stream, static_cast<std::uint64_t>(i)))
            : floats(lines)[i - kDifferent];
  }
  return lines;
}

// The states and streams of all blocks.
class Pass {
 public:
  explicit Pass(const Case& of)
      : num_blocks_(of.num_blocks), num_tokens_(of.num_tokens), width_(of.width) {
    states_ = normal((num_blocks_ + 1) * unit(), 1, 1.0);
    grads_ = normal((num_blocks_ + 1) * unit(), 2, 0.0);
    grad_out_ = normal(kWays * unit(), 3, 1.0);
    out_ = normal(kWays * unit(), 4, 0.0);
    eager_.num_blocks = num_blocks_;
    eager_.num_tokens = num_tokens_;
    eager_.width = width_;
    eager_.num_ways = kWays;
    eager_.states = floats(states_);
    eager_.grad_out = floats(grad_out_);
    for (std::int64_t l = 0; l < num_blocks_; ++l) {
      const std::int64_t count = ways(l) * sources(l);
      const auto stream = static_cast<std::uint64_t>(10 + l);
      const double scale = 1.0 / std::sqrt(static_cast<double>(count));
      add(num_tokens_ * count, stream, 0.3, eager_.weights);
      add(width_ * count, 100 + stream, 1.0 / std::sqrt(static_cast<double>(width_)), eager_.w1);
      add(count * count, 200 + stream, scale, eager_.w2);
      add(count, 300 + stream, 0.3, eager_.bias);
      add(num_tokens_ * count, 400 + stream, 0.0, grad_weights_);
      add(num_tokens_ * count, 500 + stream, 0.0, z_);
      add(num_tokens_, 600 + stream, 0.0, inverse_rms_);
      add(num_tokens_ * count, 700 + stream, 0.0, made_weights_);
    }
    const std::int64_t most = kWays * sources(num_blocks_ - 1);
    add(most * (width_ + most + 1), 900, 0.0, grad_parameters_);
    for (std::int64_t state = 0; state <= num_blocks_; ++state) {
      source_at_.push_back(floats(states_) + state * unit());
      grad_at_.push_back(floats(grads_) + state * unit());
    }
    for (std::int64_t way = 0; way < kWays; ++way) {
      out_at_.push_back(floats(out_) + way * unit());
      grad_out_at_.push_back(floats(grad_out_) + way * unit());
    }
  }
  Pass(const Pass&) = delete;
  Pass& operator=(const Pass&) = delete;

  const DepthPass& eager() const { return eager_; }

  void run(Work work, const Executor& executor) {
    const bool is_forward = work == Work::kSum || work == Work::kStep;
    for (std::int64_t i = 0; i < num_blocks_; ++i) {
      const std::int64_t l = is_forward ? i : num_blocks_ - 1 - i;
      switch (work) {
        case Work::kSum:
          kernels::depth_aggregate(sum(l, false), out_at_.data(), executor);
          break;
        case Work::kSumGradients:
          kernels::depth_aggregate_backward(sum(l, false), sum_gradients(l), executor);
          break;
        case Work::kStep:
          kernels::depth_step(step(l),
                              {made_weights_[index(l)], z_[index(l)], inverse_rms_[index(l)]},
                              out_at_.data(), executor);
          break;
        case Work::kStepGradients:
          kernels::depth_step_backward(step(l), step_gradients(l), kernels::gemm, executor);
          break;
      }
    }
  }

  // Of the least traffic: each state read once and each stream written; backward each gradient of
  // a state read (but for the first block) and written, each state and stream's gradient read.
  double bytes(Work work) const {
    const bool is_forward = work == Work::kSum || work == Work::kStep;
    double units = 0.0;
    for (std::int64_t l = 0; l < num_blocks_; ++l) {
      const bool is_first = l + 1 == num_blocks_;
      const std::int64_t of_sources = is_forward ? 1 : is_first ? 2 : 3;
      units += static_cast<double>(of_sources * sources(l) + ways(l));
    }
    return units * static_cast<double>(unit()) * sizeof(float);
  }

  // Why results of the same work are not the baseline's; empty: they are.
  std::string wrong(Work work, const EagerDepth& baseline) const {
    const bool is_forward = work == Work::kSum || work == Work::kStep;
    const std::int64_t count = is_forward ? kWays : num_blocks_ + 1;
    for (std::int64_t i = 0; i < count * unit(); i += unit() / 7 + 13) {
      const std::int64_t which = i / unit();
      const double ours = is_forward ? floats(out_)[i] : floats(grads_)[i];
      const double theirs =
          is_forward ? baseline.stream(which, i % unit()) : baseline.grad_state(which, i % unit());
      // Sums of some hundred products in float32.
      if (!(std::fabs(ours - theirs) <= 1e-3 * (1.0 + std::fabs(theirs)))) {
        return "element " + std::to_string(i) + ": " + std::to_string(ours) + " instead of " +
               std::to_string(theirs);
      }
    }
    return "";
  }

 private:
  static constexpr std::int64_t kWays = 4;

  static std::size_t index(std::int64_t l) { return static_cast<std::size_t>(l); }
  std::int64_t unit() const { return num_tokens_ * width_; }
  std::int64_t sources(std::int64_t l) const { return l + 2; }
  std::int64_t ways(std::int64_t l) const { return l + 1 == num_blocks_ ? 1 : kWays; }

  void add(std::int64_t count, std::uint64_t stream, double scale, std::vector<float*>& to) {
    memory_.push_back(normal(count, stream, scale));
    to.push_back(floats(memory_.back()));
  }

  kernels::DepthAggregate sum(std::int64_t l, bool is_made) const {
    return {DType::kFloat32,
            num_tokens_,
            width_,
            sources(l),
            ways(l),
            source_at_.data(),
            is_made ? made_weights_[index(l)] : eager_.weights[index(l)],
            DType::kFloat32,
            ways(l) * sources(l),
            sources(l)};
  }
  kernels::DepthAggregateGradients sum_gradients(std::int64_t l) const {
    return {grad_out_at_.data(), grad_at_.data(), l + 1 == num_blocks_ ? 0 : sources(l),
            grad_weights_[index(l)]};
  }
  kernels::DepthStep step(std::int64_t l) const {
    const std::int64_t count = ways(l) * sources(l);
    kernels::DepthStep of;
    of.generator = {DType::kFloat32,
                    num_tokens_,
                    width_,
                    count,
                    count,
                    1e-6,
                    kernels::GeluForm::kExact,
                    source_at_[index(l + 1)],
                    eager_.w1[index(l)],
                    eager_.w2[index(l)],
                    eager_.bias[index(l)]};
    of.aggregate = sum(l, true);
    return of;
  }
  kernels::DepthStepGradients step_gradients(std::int64_t l) const {
    const std::int64_t count = ways(l) * sources(l);
    float* to = grad_parameters_[0];
    kernels::DepthStepGradients of;
    of.aggregate = sum_gradients(l);
    of.generator.z = z_[index(l)];
    of.generator.inverse_rms = inverse_rms_[index(l)];
    of.generator.grad_w1 = to;
    of.generator.grad_w2 = to + width_ * count;
    of.generator.grad_bias = to + (width_ + count) * count;
    return of;
  }

  std::int64_t num_blocks_;
  std::int64_t num_tokens_;
  std::int64_t width_;
  kernels::Lines states_;
  kernels::Lines grads_;
  kernels::Lines grad_out_;
  kernels::Lines out_;
  std::vector<kernels::Lines> memory_;
  std::vector<float*> grad_weights_;
  std::vector<float*> made_weights_;
  std::vector<float*> z_;
  std::vector<float*> inverse_rms_;
  std::vector<float*> grad_parameters_;  // one, of whichever block
  std::vector<const void*> source_at_;
  std::vector<const void*> grad_out_at_;
  std::vector<void*> grad_at_;
  std::vector<void*> out_at_;
  DepthPass eager_;
};

class Bench {
 public:
  explicit Bench(const RatioArguments& arguments) : arguments_(arguments) {}

  std::vector<RatioRow> run() {
    std::vector<RatioRow> rows;
    for (const Table& table : all_tables()) {
      for (const Case& of : all_cases()) {
        for (const int num_threads : arguments_.thread_counts()) {
          const RatioRow row = row_of(table, of, num_threads);
          if (arguments_.wants(row, of.is_quick) && (arguments_.is_quick || !of.is_quick)) {
            measure(table, of, row, rows);
          }
        }
      }
    }
    return rows;
  }

  std::string note() const {
    std::string roofs;
    for (const auto& [threads, gb_s] : copy_roofs_) {
      char text[60];
      std::snprintf(text, sizeof(text), "%s%.0f GB/s with %s", roofs.empty() ? "" : ", ", gb_s,
                    threads_text(threads).c_str());
      roofs += text;
    }
    return "L blocks, D columns, T tokens, float32, four streams after each block but the last: a "
           "pass over all blocks. Baselines: LibTorch, by name. GB/s: of the least traffic, each "
           "state read and each stream written once a block (backward each state's gradient read "
           "and written too). Roof: a copy past the caches, " +
           roofs + "; what stays in the last-level cache may be above it.";
  }

 private:
  RatioRow row_of(const Table& table, const Case& of, int num_threads) const {
    RatioRow row;
    row.table = table.name;
    row.name = "L " + std::to_string(of.num_blocks) + ", D " + std::to_string(of.width) + ", T " +
               std::to_string(of.num_tokens) + ", " + threads_text(num_threads);
    row.num_threads = num_threads;
    row.target = of.has_targets ? table.best_target : 1.0;
    return row;
  }

  double copy_roof(int num_threads, const Executor& executor) {
    double& roof = copy_roofs_[num_threads];
    if (roof == 0.0) {
      const std::size_t bytes = 8 * last_level_cache_bytes();
      const kernels::Lines memory =
          normal(static_cast<std::int64_t>(bytes / sizeof(float)), 1, 1.0);
      roof = copy_roof_gb_s(executor, memory.get(), bytes);
    }
    return roof;
  }

  static void eager(Work work, EagerDepthForm form, EagerDepth& baseline) {
    if (work == Work::kSum) {
      baseline.forward(form);
    } else if (work == Work::kStep) {
      baseline.forward_generated(form);
    } else {
      baseline.backward(form);
    }
  }

  void measure(const Table& table, const Case& of, RatioRow row, std::vector<RatioRow>& rows) {
    const Executor& threads = ops::torch_executor();
    set_depth_threads(row.num_threads);
    row.memory_roof = "copy";
    row.memory_roof_gb_s = copy_roof(row.num_threads, threads);
    Pass pass(of);
    EagerDepth baseline(pass.eager());
    const bool is_backward =
        table.work == Work::kSumGradients || table.work == Work::kStepGradients;
    row.bytes = pass.bytes(table.work);
    pass.run(Work::kStep, threads);  // what the backward pass reads
    pass.run(table.work, threads);
    std::vector<Contestant> contestants = {{[] {}, [&] { pass.run(table.work, threads); }}};
    for (const EagerDepthForm form : table.forms) {
      const auto prepare = [&, form, is_backward] {
        if (is_backward) {
          baseline.record(form, table.work == Work::kStepGradients);
        }
      };
      const auto step = [&, form] { eager(table.work, form, baseline); };
      prepare();
      step();
      row.wrong = pass.wrong(table.work, baseline);
      if (!row.wrong.empty()) {
        row.wrong = name_of(form) + ", " + row.wrong;
        add_row(row, rows);
        return;
      }
      contestants.push_back({prepare, step});
    }
    const auto timings = time_interleaved(contestants, arguments_.num_repetitions, kRowSeconds);
    add_rows(table, of, row, timings, rows);
  }

  // One row for the loop, one for its form in place, one for the best of all but the loop.
  static void add_rows(const Table& table, const Case& of, RatioRow row,
                       const std::vector<Timing>& timings, std::vector<RatioRow>& rows) {
    row.ours = timings[0];
    std::size_t best = 1;
    for (std::size_t i = 0; i < table.forms.size(); ++i) {
      const bool is_best =
          i > 0 && (best == 0 || timings[i + 1].median_us < timings[best + 1].median_us);
      best = is_best ? i : best;
    }
    const std::string name = row.name;
    for (std::size_t i = 0; i < table.forms.size(); ++i) {
      row.baseline = timings[i + 1];
      row.backend = name_of(table.forms[i]);
      const double target = table.forms[i] == EagerDepthForm::kLoop      ? table.loop_target
                            : i == best                                  ? table.best_target
                            : table.forms[i] == EagerDepthForm::kAddcmul ? table.addcmul_target
                                                                         : table.best_target;
      row.target = of.has_targets ? target : 1.0;
      row.share_target = of.has_targets ? table.share_target : 0.0;
      row.name = name + ": " + row.backend;
      add_row(row, rows);
    }
  }

  const RatioArguments& arguments_;
  std::map<int, double> copy_roofs_;
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
