// attention_bench --out FILE [--machine NAME] [--repetitions N] [--threads N] [--isa NAME]
//                 [--only TEXT] [--quick]
//
// Attention forward, backward and with one query over a cache, against LibTorch's
// scaled_dot_product_attention on the same memory, by dtype, head size, length and threads. Prints
// a table and writes it as JSON. Exit code 1 if a result is wrong.
//   --isa NAME    the instruction set of ours; LibTorch's: ATEN_CPU_CAPABILITY in the environment
//   --only TEXT   rows whose "table: case" contains TEXT
//   --quick       a few small rows

#include <algorithm>
#include <cstdio>
#include <string>
#include <vector>

#include "bench/support/attention_case.h"
#include "bench/support/attention_timer.h"
#include "bench/support/ratio_bench.h"
#include "bench/support/ratio_row.h"
#include "bench/support/roofs.h"
#include "bench/support/sdpa.h"
#include "paperlab/core/cpu_isa.h"
#include "paperlab/core/json.h"
#include "paperlab/core/parallel.h"

namespace paperlab::bench {
namespace {

using kernels::DType;
using kernels::KeyRule;
using kernels::KeyRuleKind;

enum class What { kForward, kBackward, kOneQuery };

// A row before its number of threads is chosen.
struct Case {
  What what;
  AttentionShape shape;
  std::string table;
  double target = 1.0;
  double share_target = 0.0;  // of the roof
  bool is_quick = false;
};

// Fewer heads where a head alone takes long.
std::int64_t heads_for(std::int64_t length) { return length <= 4096 ? 8 : length <= 8192 ? 2 : 1; }

AttentionShape square(DType dtype, std::int64_t heads, std::int64_t length, std::int64_t head_dim) {
  return {dtype, heads, heads, length, length, head_dim, KeyRule::dense()};
}

double forward_target(DType dtype, std::int64_t length) {
  return dtype == DType::kBFloat16 ? 1.0
         : length < 512            ? 1.6
         : length == 512           ? 1.9
         : length <= 4096          ? 1.35
                                   : 1.15;
}

double backward_target(DType dtype, std::int64_t length) {
  return dtype == DType::kBFloat16 ? 0.8 : length <= 1024 ? 1.5 : length <= 4096 ? 1.3 : 1.1;
}

void add_forward(DType dtype, const std::vector<std::int64_t>& lengths, std::vector<Case>& cases) {
  const std::string table = std::string("forward, ") + dtype_name(dtype) + ", causal";
  for (const std::int64_t head_dim : {64, 128}) {
    for (const std::int64_t length : lengths) {
      const bool is_long = dtype == DType::kFloat32 && length >= 8192;
      cases.push_back({What::kForward, square(dtype, heads_for(length), length, head_dim), table,
                       forward_target(dtype, length), is_long ? 0.75 : 0.0,
                       head_dim == 64 && (length == 256 || length == 512)});
    }
  }
}

void add_other_rules(std::vector<Case>& cases) {
  for (const KeyRule& rule : {KeyRule::full(), KeyRule::sliding(512)}) {
    for (const std::int64_t head_dim : {64, 128}) {
      AttentionShape shape = square(DType::kFloat32, 8, 4096, head_dim);
      shape.rule = rule;
      cases.push_back({What::kForward, shape,
                       rule.kind == KeyRuleKind::kFull ? "forward, float32, not causal"
                                                       : "forward, float32, window of 512"});
    }
  }
}

void add_backward(DType dtype, const std::vector<std::int64_t>& lengths, std::vector<Case>& cases) {
  const std::string table = std::string("backward, ") + dtype_name(dtype) + ", causal";
  for (const std::int64_t head_dim : {64, 128}) {
    for (const std::int64_t length : lengths) {
      cases.push_back({What::kBackward, square(dtype, heads_for(length), length, head_dim), table,
                       backward_target(dtype, length), 0.0, head_dim == 64 && length <= 512});
    }
  }
}

// LibTorch shares heads between its threads, ours also keys; the target is for two threads.
void add_backward_of_one_head(std::vector<Case>& cases) {
  for (const std::int64_t head_dim : {64, 128}) {
    for (const std::int64_t length : {1024, 4096}) {
      cases.push_back({What::kBackward, square(DType::kFloat32, 1, length, head_dim),
                       "backward, float32, causal, one head", 1.8});
    }
  }
}

void add_one_query(DType dtype, std::vector<Case>& cases) {
  const std::string table = std::string("one query, ") + dtype_name(dtype);
  for (const std::int64_t head_dim : {64, 128}) {
    for (const std::int64_t length : {4096, 16384, 32768, 131072}) {
      const std::int64_t kv_heads = length <= 32768 ? 8 : 2;
      cases.push_back({What::kOneQuery,
                       {dtype, 4 * kv_heads, kv_heads, 1, length, head_dim, KeyRule::dense()},
                       table,
                       1.5,
                       0.8,
                       dtype == DType::kFloat32 && head_dim == 64 && length == 4096});
    }
  }
}

std::vector<Case> all_cases() {
  std::vector<Case> cases;
  add_forward(DType::kFloat32, {128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768}, cases);
  add_other_rules(cases);
  add_backward(DType::kFloat32, {256, 512, 1024, 2048, 4096, 8192}, cases);
  add_backward_of_one_head(cases);
  add_forward(DType::kBFloat16, {256, 512, 2048, 8192}, cases);
  add_backward(DType::kBFloat16, {256, 512, 2048, 8192}, cases);
  add_one_query(DType::kFloat32, cases);
  add_one_query(DType::kBFloat16, cases);
  return cases;
}

std::string name_of(const AttentionShape& shape, int num_threads) {
  std::string name = shape.num_queries == 1 ? "S " : "T ";
  name += std::to_string(shape.num_keys) + ", D " + std::to_string(shape.head_dim) + ", H " +
          std::to_string(shape.num_heads);
  if (shape.num_heads != shape.num_kv_heads) {
    name += ", G " + std::to_string(shape.num_kv_heads);
  }
  return name + ", " + threads_text(num_threads);
}

// Of one thread, in GFLOP/s. bfloat16: of float32 where the CPU has no dot product of its own.
struct Roofs {
  double float32;
  double bfloat16;
};

// In float32, of each instruction set that the CPU has.
Json float32_roofs() {
  Json roofs = Json::object();
  for (const CpuIsa isa : {CpuIsa::kGeneric, CpuIsa::kAvx2, CpuIsa::kAvx512}) {
    if (isa <= detected_cpu_isa()) {
      roofs[cpu_isa_name(isa)] = json_number(fma_roof_float32_gflops(isa));
    }
  }
  return roofs;
}

RatioRow row_of(const Case& of, int num_threads, const Roofs& roofs) {
  RatioRow row;
  row.table = of.table;
  row.name = name_of(of.shape, num_threads);
  row.num_threads = num_threads;
  row.target = of.target;
  row.share_target = of.share_target;
  if (of.what == What::kOneQuery) {
    row.bytes = static_cast<double>(cache_bytes(of.shape));
  } else {
    const bool is_float32 = of.shape.dtype == DType::kFloat32;
    row.flops = of.what == What::kForward ? forward_flops(of.shape) : backward_flops(of.shape);
    row.fma_roof_gflops = num_threads * (is_float32 ? roofs.float32 : roofs.bfloat16);
  }
  if (of.what == What::kBackward && of.shape.num_heads == 1 && num_threads == 1) {
    row.target = backward_target(of.shape.dtype, of.shape.num_keys);
  }
  return row;
}

void measure(const Case& of, AttentionTimer& timer, RatioRow& row) {
  const ThreadPool pool(row.num_threads);
  switch (of.what) {
    case What::kForward:
      return timer.forward(of.shape, pool, row);
    case What::kBackward:
      return timer.backward(of.shape, pool, row);
    case What::kOneQuery:
      return timer.one_query(of.shape, pool, row);
  }
}

std::vector<RatioRow> run(const RatioArguments& arguments, const Roofs& roofs,
                          AttentionTimer& timer) {
  std::vector<RatioRow> rows;
  for (const Case& of : all_cases()) {
    for (const int num_threads : arguments.thread_counts()) {
      RatioRow row = row_of(of, num_threads, roofs);
      if (!arguments.wants(row, of.is_quick)) {
        continue;
      }
      measure(of, timer, row);
      add_row(row, rows);
    }
  }
  return rows;
}

std::string note(const Json& machine, const Roofs& roofs, const AttentionTimer& timer) {
  char line[400];
  std::snprintf(
      line, sizeof(line),
      "Baseline: scaled_dot_product_attention of torch %s with %s; ours with %s. Roofs of "
      "one thread: %.0f GFLOP/s in float32, %.0f in bfloat16.",
      machine["torch"].get<std::string>().c_str(), sdpa_capability().c_str(),
      cpu_isa_name(cpu_isa()), roofs.float32, roofs.bfloat16);
  std::string text = line;
  for (const auto& [num_threads, roof] : timer.read_roofs()) {
    std::snprintf(line, sizeof(line), " Best read rate with %s: %.1f GB/s.",
                  threads_text(num_threads).c_str(), roof.gb_s);
    text += line;
  }
  return text + (timer.read_roofs().empty()
                     ? ""
                     : " The other baseline of one query takes the heads of a group as its rows.");
}

Json read_roofs(const AttentionTimer& timer) {
  Json roofs = Json::object();
  for (const auto& [num_threads, roof] : timer.read_roofs()) {
    roofs[threads_text(num_threads)] = {{"gb_s", json_number(roof.gb_s)},
                                        {"streams", roof.form.num_streams},
                                        {"prefetch_bytes", roof.form.prefetch_bytes}};
  }
  return roofs;
}

std::vector<RatioRow> measure_all(const RatioArguments& arguments, Json& result) {
  result["torch_isa"] = sdpa_capability();
  result["float32_roofs_gflops"] = float32_roofs();
  const double float32_roof = result["float32_roofs_gflops"][cpu_isa_name(cpu_isa())];
  const Roofs roofs = {float32_roof, std::max(float32_roof, dot_roof_bfloat16_gflops())};
  result["bfloat16_roof_gflops"] = json_number(roofs.bfloat16);
  AttentionTimer timer(arguments.num_repetitions);
  std::printf("%s\n", note(result, roofs, timer).c_str());
  const std::vector<RatioRow> rows = run(arguments, roofs, timer);
  result["read_roofs"] = read_roofs(timer);
  result["note"] = note(result, roofs, timer);
  return rows;
}

}  // namespace
}  // namespace paperlab::bench

int main(int argc, char** argv) {
  return paperlab::bench::run_ratio_bench(argc, argv, paperlab::bench::measure_all);
}
