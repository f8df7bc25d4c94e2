// core_context_bench --out FILE [--machine NAME] [--repetitions N] [--threads N] [--isa NAME]
//                    [--only TEXT] [--quick]
//
// Core-context attention (groups of 16, window of 1024, two heads of 128, float32) with its
// pooling, against our dense kernel and LibTorch's scaled_dot_product_attention in the same run:
// prefill, prefill with gradients, and one query over caches that take turns. A row's target is a
// share of the work ratio (pairs of dense and of core-context attention) or of the cache ratio
// (vectors). Prints a table and writes it as JSON. Exit code 1 if a result is wrong.
//   --only TEXT   rows whose "table: case" contains TEXT
//   --quick       short rows

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <string>
#include <vector>

#include "bench/support/core_context_case.h"
#include "bench/support/peak_memory.h"
#include "bench/support/ratio_bench.h"
#include "bench/support/ratio_row.h"
#include "bench/support/roofs.h"
#include "bench/support/sdpa.h"
#include "bench/support/timing.h"
#include "paperlab/core/cpu_isa.h"
#include "paperlab/core/json.h"
#include "paperlab/core/parallel.h"
#include "paperlab/ops/parallel_bridge.h"

namespace paperlab::bench {
namespace {

constexpr double kRowSeconds = 4.0;  // past which a row has enough repetitions

enum class What { kPrefill, kTraining, kOneQuery };

struct Case {
  What what;
  std::int64_t length;
  double share;        // least share of the work or cache ratio against our dense kernel
  double other_share;  // likewise against LibTorch's; 0: not measured
  bool is_quick = false;
};

std::vector<Case> all_cases() {
  return {{What::kPrefill, 2048, 0.0, 0.0, true},  {What::kPrefill, 4096, 0.85, 1.0},
          {What::kPrefill, 8192, 0.85, 1.0},       {What::kPrefill, 16384, 0.9, 1.0},
          {What::kPrefill, 32768, 0.9, 1.0},       {What::kTraining, 2048, 0.0, 0.0, true},
          {What::kTraining, 4096, 0.7, 0.7},       {What::kTraining, 8192, 0.7, 0.7},
          {What::kTraining, 16384, 0.75, 0.0},     {What::kTraining, 32768, 0.75, 0.0},
          {What::kOneQuery, 8192, 0.0, 0.0, true}, {What::kOneQuery, 32768, 0.85, 1.0},
          {What::kOneQuery, 131072, 0.85, 1.0}};
}

Contestant contestant(std::function<void()> step) {
  return {[] {}, std::move(step)};
}

// Work or cache ratio: what equally fast kernels would gain.
double ideal_ratio(const Case& of, const CoreContextShape& shape) {
  if (of.what == What::kOneQuery) {
    const auto vectors =
        static_cast<double>(shape.num_core() + shape.length - shape.num_core() * shape.group);
    return static_cast<double>(shape.length) / vectors;
  }
  return forward_flops(shape.dense(shape.length)) / forward_flops(shape.core_context(shape.length));
}

const char* table_of(What what) {
  return what == What::kPrefill    ? "prefill, float32"
         : what == What::kTraining ? "forward and backward, float32"
                                   : "one query over caches, float32";
}

RatioRow row_of(const Case& of, const CoreContextShape& shape, int num_threads, double roof) {
  const double ideal = ideal_ratio(of, shape);
  RatioRow row;
  row.table = table_of(of.what);
  row.name = (of.what == What::kOneQuery ? "S " : "T ") + std::to_string(of.length) + ", " +
             threads_text(num_threads);
  row.num_threads = num_threads;
  row.backend = "our dense kernel";
  row.target = of.share * ideal;
  row.other_target = of.other_share * ideal;
  row.numbers.emplace_back("ideal_ratio", ideal);
  const double forward = forward_flops(shape.core_context(shape.length));
  row.flops = of.what == What::kPrefill ? forward : 3.5 * forward;
  row.fma_roof_gflops = num_threads * roof;
  return row;
}

// The timings of ours, the dense kernel and LibTorch (none: no third).
void set_timings(const std::vector<Timing>& timings, RatioRow& row) {
  const double ideal = row.numbers[0].second;
  row.ours = timings[0];
  row.baseline = timings[1];
  row.numbers.emplace_back("share_of_ideal", row.ratio() / ideal);
  if (timings.size() > 2) {
    row.other = timings[2];
    row.other_name = "LibTorch";
    row.numbers.emplace_back("other_share_of_ideal", row.other_ratio() / ideal);
  }
}

// Bytes beyond inputs and results, in copies of K and V.
void set_memory(double bytes, const CoreContextShape& shape, RatioRow& row) {
  row.numbers.emplace_back("extra_copies",
                           bytes / static_cast<double>(cache_bytes(shape.dense(1))));
}

void prefill(const Case& of, const CoreContextShape& shape, const RatioArguments& arguments,
             const Executor& executor, RatioRow& row) {
  const AttentionCase memory(shape.dense(shape.length));
  CoreContextCase ours(shape, memory);
  Sdpa torch(memory.inputs());
  std::vector<Contestant> contestants = {
      contestant([&] { ours.forward(executor); }),
      contestant([&] { kernels::attention(memory.inputs(), memory.outputs(), executor); })};
  if (of.other_share > 0.0) {
    contestants.push_back(contestant([&] { torch.forward(); }));
  }
  const std::int64_t scratch = peak_bytes(contestants[0].step);
  set_timings(time_interleaved(contestants, arguments.num_repetitions, kRowSeconds), row);
  set_memory(static_cast<double>(scratch + ours.forward_bytes()), shape, row);
}

void training(const Case& of, const CoreContextShape& shape, const RatioArguments& arguments,
              const Executor& executor, RatioRow& row) {
  const AttentionCase memory(shape.dense(shape.length));
  CoreContextCase ours(shape, memory);
  Sdpa torch(memory.inputs());
  std::vector<Contestant> contestants = {
      contestant([&] {
        ours.forward(executor);
        ours.backward(executor);
      }),
      contestant([&] {
        kernels::attention(memory.inputs(), memory.outputs(), executor);
        kernels::attention_backward(memory.inputs(), memory.backward_inputs(), memory.gradients(),
                                    executor);
      })};
  if (of.other_share > 0.0) {
    contestants.push_back(contestant([&] {
      torch.prepare_backward(memory.backward_inputs().grad_out);
      torch.backward();
    }));
  }
  const std::int64_t scratch = peak_bytes(contestants[0].step);
  set_timings(time_interleaved(contestants, arguments.num_repetitions, kRowSeconds), row);
  // Attention's scratch memory is gone when pooling's gradients come.
  const double of_pooling = static_cast<double>(ours.backward_bytes() - 2 * ours.forward_bytes());
  set_memory(static_cast<double>(2 * ours.forward_bytes()) +
                 std::max(static_cast<double>(scratch), of_pooling),
             shape, row);
}

// A cache of core tokens and the last raw keys, or of all keys, in memory of the arena.
class Caches {
 public:
  Caches(const CoreContextShape& shape, const Buffer& arena, bool is_dense) : shape_(shape) {
    const std::int64_t core = is_dense ? 0 : shape.num_core();
    const std::int64_t raw = shape.length - core * shape.group;
    const std::int64_t vector = shape.num_heads * shape.head_dim;
    const auto bytes = static_cast<std::size_t>(2 * (core + raw) * vector) * sizeof(float);
    for (std::size_t at = 0; at + bytes <= arena.num_bytes(); at += bytes) {
      auto* data = reinterpret_cast<float*>(static_cast<char*>(arena.data()) + at);
      kernels::AttentionInputs in;
      in.rule = is_dense ? kernels::KeyRule::dense()
                         : kernels::KeyRule::core_context(shape.group, shape.window);
      in.rule.num_past = shape.length - raw;
      in.scale = 1.0 / std::sqrt(static_cast<double>(shape.head_dim));
      in.key = view(data, raw);
      in.value = view(data + raw * vector, raw);
      if (!is_dense) {
        in.prefix_key = view(data + 2 * raw * vector, core);
        in.prefix_value = view(data + (2 * raw + core) * vector, core);
      }
      inputs_.push_back(in);
    }
  }

  std::size_t size() const { return inputs_.size(); }
  kernels::AttentionInputs inputs(std::size_t i, const Buffer& query) const {
    kernels::AttentionInputs in = inputs_[i];
    in.query = view(query.data(), 1);
    return in;
  }
  // The newest group, as a cache appends it: read from the raw keys, written over the last core
  // token.
  void append(std::size_t i, const Buffer& query, const Executor& executor) const {
    kernels::GroupPoolInputs pool;
    pool.query = view(query.data(), 1);
    pool.key = last(inputs_[i].key, shape_.group);
    pool.value = last(inputs_[i].value, shape_.group);
    pool.group = shape_.group;
    pool.scale = inputs_[i].scale;
    kernels::group_pool(
        pool,
        {writable(last(inputs_[i].prefix_key, 1)), writable(last(inputs_[i].prefix_value, 1))},
        executor);
  }

 private:
  kernels::ConstTensorView view(void* data, std::int64_t rows) const {
    return as_const(
        view_of(data, kernels::DType::kFloat32, shape_.num_heads, rows, shape_.head_dim));
  }
  static kernels::ConstTensorView last(kernels::ConstTensorView view, std::int64_t rows) {
    view.data = static_cast<const float*>(view.data) + (view.size[2] - rows) * view.stride[2];
    view.size[2] = rows;
    return view;
  }
  static kernels::TensorView writable(const kernels::ConstTensorView& view) {
    kernels::TensorView result{const_cast<void*>(view.data), view.dtype};
    std::copy(std::begin(view.size), std::end(view.size), result.size);
    std::copy(std::begin(view.stride), std::end(view.stride), result.stride);
    return result;
  }

  CoreContextShape shape_;
  std::vector<kernels::AttentionInputs> inputs_;
};

// Four dense caches at least, and four times the last-level cache.
std::size_t arena_bytes(const CoreContextShape& shape) {
  return std::max(4 * last_level_cache_bytes(), 4 * cache_bytes(shape.dense(1)));
}

// Calls step(i) for the next i of `count` each time.
Contestant rotating(std::size_t count, std::function<void(std::size_t)> step) {
  return contestant([count, step = std::move(step), i = std::size_t{0}]() mutable {
    step(i);
    i = i + 1 == count ? 0 : i + 1;
  });
}

void one_query(const Case& of, const CoreContextShape& shape, const RatioArguments& arguments,
               const Executor& executor, RatioRow& row) {
  const Buffer arena(arena_bytes(shape));
  fill_normal(arena.data(), shape.dtype, arena.num_bytes() / sizeof(float), 2);
  const std::size_t vector =
      static_cast<std::size_t>(shape.num_heads * shape.head_dim) * sizeof(float);
  const Buffer query(vector);
  const Buffer out(vector);
  const Buffer lse(vector);
  fill_normal(query.data(), shape.dtype, vector / sizeof(float), 1);
  const kernels::AttentionOutputs outputs = {
      view_of(out.data(), shape.dtype, shape.num_heads, 1, shape.head_dim), lse.data()};
  const Caches core(shape, arena, false);
  const Caches dense(shape, arena, true);
  std::vector<Sdpa> torch;
  for (std::size_t i = 0; i < dense.size() && of.other_share > 0.0; ++i) {
    torch.emplace_back(dense.inputs(i, query));
  }
  std::int64_t step = 0;
  std::vector<Contestant> contestants = {
      rotating(core.size(),
               [&](std::size_t i) {
                 if (++step % shape.group == 0) {
                   core.append(i, query, executor);
                 }
                 kernels::attention(core.inputs(i, query), outputs, executor);
               }),
      rotating(dense.size(), [&](std::size_t i) {
        kernels::attention(dense.inputs(i, query), outputs, executor);
      })};
  if (!torch.empty()) {
    contestants.push_back(rotating(torch.size(), [&](std::size_t i) { torch[i].forward(); }));
  }
  row.flops = 0.0;
  row.bytes = static_cast<double>(cache_bytes(shape.dense(1))) / row.numbers[0].second;
  row.memory_roof_gb_s = read_roof(executor, arena.data(), arena.num_bytes()).gb_s;
  set_timings(time_interleaved(contestants, arguments.num_repetitions, kRowSeconds), row);
}

void measure(const Case& of, const CoreContextShape& shape, const RatioArguments& arguments,
             RatioRow& row) {
  set_sdpa_threads(row.num_threads);
  const Executor& pool = ops::torch_executor();
  switch (of.what) {
    case What::kPrefill:
      return prefill(of, shape, arguments, pool, row);
    case What::kTraining:
      return training(of, shape, arguments, pool, row);
    case What::kOneQuery:
      return one_query(of, shape, arguments, pool, row);
  }
}

std::vector<RatioRow> measure_all(const RatioArguments& arguments, Json& result) {
  const double roof = fma_roof_float32_gflops(cpu_isa());
  const int num_threads = arguments.num_threads == 0 ? 2 : arguments.num_threads;
  const std::string wrong = wrong_core_context(ThreadPool(num_threads));
  result["torch_isa"] = sdpa_capability();
  char note[400];
  std::snprintf(note, sizeof(note),
                "Groups of 16, window of 1024, 2 heads of 128. Baseline: our dense kernel; the "
                "other one is scaled_dot_product_attention of torch %s with %s; ours with %s. The "
                "ideal ratio is that of pairs (one query: of cached vectors). Roof of one thread: "
                "%.0f GFLOP/s.",
                result["torch"].get<std::string>().c_str(), sdpa_capability().c_str(),
                cpu_isa_name(cpu_isa()), roof);
  result["note"] = note;
  std::vector<RatioRow> rows;
  for (const Case& of : all_cases()) {
    CoreContextShape shape;
    shape.length = of.length;
    RatioRow row = row_of(of, shape, num_threads, roof);
    if (of.is_quick != arguments.is_quick || !arguments.wants(row, of.is_quick)) {
      continue;
    }
    row.wrong = wrong;
    if (wrong.empty()) {
      measure(of, shape, arguments, row);
    }
    add_row(row, rows);
  }
  return rows;
}

}  // namespace
}  // namespace paperlab::bench

int main(int argc, char** argv) {
  return paperlab::bench::run_ratio_bench(argc, argv, paperlab::bench::measure_all);
}
