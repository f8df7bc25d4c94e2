// cca_bench --out FILE [--machine NAME] [--repetitions N] [--threads N] [--isa NAME] [--only TEXT]
//           [--quick]
//
// Core-context attention and what it is compared with, forward, against our own full attention
// (groups of 16, window of 1024, float32): prefill by length (8 heads of 64), and one query over a
// long cache (8 heads of 128). Prints a table and writes it as JSON, with the timed claims of
// experiments/cca where all of their rows were measured. Exit code 1 if a result is wrong.
//   --only TEXT   rows whose "table: case" contains TEXT
//   --quick       a short row

#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/softmax.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "bench/support/ratio_bench.h"
#include "bench/support/ratio_row.h"
#include "bench/support/roofs.h"
#include "bench/support/timing.h"
#include "paperlab/cca/attention.h"
#include "paperlab/cca/baselines.h"
#include "paperlab/cca/cost.h"
#include "paperlab/core/cpu_isa.h"
#include "paperlab/core/json.h"
#include "paperlab/core/parallel.h"
#include "paperlab/ops/attention.h"

namespace paperlab::bench {
namespace {

namespace baselines = cca::baselines;

constexpr double kRowSeconds = 10.0;  // past which a row has enough repetitions
constexpr std::int64_t kGroup = 16;
constexpr std::int64_t kWindow = 1024;
constexpr std::int64_t kHeads = 8;
constexpr std::int64_t kHeadDim = 64;
constexpr std::int64_t kDecodeHeadDim = 128;
constexpr std::int64_t kLeastCaches = 4;
constexpr std::int64_t kMaxEager = 4096;  // tokens

struct Inputs {
  at::Tensor query;
  at::Tensor key;
  at::Tensor value;
};

using Attention = std::function<at::Tensor(const Inputs& in)>;

struct Method {
  std::string name;
  bool has_core = false;
  Attention attend;
  bool is_full = false;
};

// Pairs of one head; a window of s keys has nearly those of sinks and a window of s in all.
double pairs_of(const Method& method, std::int64_t length) {
  if (method.has_core) {
    return static_cast<double>(cca::cost(length).pairs);
  }
  if (method.is_full) {
    return static_cast<double>(cca::cost(length).full_pairs);
  }
  const std::int64_t within = std::min(length, kWindow);
  const std::int64_t missing = within * (within - 1) / 2;  // of the first rows
  return static_cast<double>(within * length - missing);
}

// By LibTorch's plain operations; memory is O(T^2).
at::Tensor eager(const Inputs& in) {
  const std::int64_t length = in.query.size(2);
  const double scale = 1.0 / std::sqrt(static_cast<double>(in.query.size(3)));
  const at::Tensor is_later =
      at::ones({length, length}, at::TensorOptions().dtype(at::kBool)).triu(1);
  const at::Tensor logits = at::matmul(in.query.mul(scale), in.key.transpose(2, 3))
                                .masked_fill_(is_later, -std::numeric_limits<double>::infinity());
  return at::matmul(at::softmax(logits, -1), in.value);
}

// The first two are of claims.
std::vector<Method> methods(std::int64_t length) {
  const baselines::StreamingLlmOptions streaming{.sinks = 4, .recent = kWindow - 5};
  const baselines::LmInfiniteOptions lm{
      .global_tokens = 10, .local = kWindow - 10, .limit = kWindow - 10};
  std::vector<Method> all = {
      {"CCA", true,
       [](const Inputs& in) { return cca::attention(in.query, in.key, in.value).out; }},
      {"window 1024", false,
       [](const Inputs& in) {
         return baselines::sliding_window(in.query, in.key, in.value, kWindow).out;
       }},
      {"StreamingLLM 4 + 1020", false,
       [streaming](const Inputs& in) {
         return baselines::streaming_llm(in.query, in.key, in.value, streaming).out;
       }},
      {"LM-Infinite 10 + 1014", false, [lm](const Inputs& in) {
         return baselines::lm_infinite(in.query, in.key, in.value, lm).out;
       }}};
  if (length <= kMaxEager) {
    all.push_back({"full, eager", false, eager, true});
  }
  return all;
}

// The last query of `length` tokens over what a cache of either form holds of them.
struct Caches {
  std::vector<Inputs> full;
  std::vector<Inputs> raw;     // the window
  std::vector<Inputs> prefix;  // core tokens
  std::int64_t num_past = 0;
  std::size_t turn = 0;

  explicit Caches(std::int64_t length) : num_past(length - kWindow) {
    const auto random = [](std::int64_t tokens) {
      return at::randn({1, kHeads, tokens, kDecodeHeadDim});
    };
    const std::int64_t core = num_past / kGroup;
    const std::int64_t bytes_of_token = 2 * kHeads * kDecodeHeadDim * 4;
    // So that none is still in the last-level cache at its next turn.
    const auto total = static_cast<std::int64_t>(4 * last_level_cache_bytes());
    const auto count_of = [total](std::int64_t bytes) {
      return std::max(kLeastCaches, 1 + total / bytes);
    };
    const std::int64_t count = count_of((core + kWindow) * bytes_of_token);
    for (std::int64_t i = 0; i < count; ++i) {
      raw.push_back({random(1), random(kWindow), random(kWindow)});
      prefix.push_back({{}, random(core), random(core)});
    }
    for (std::int64_t i = 0; i < count_of(length * bytes_of_token); ++i) {
      full.push_back({random(1), random(length), random(length)});
    }
  }

  void full_step() {
    const Inputs& in = full[++turn % full.size()];
    ops::attention(in.query, in.key, in.value);
  }

  void core_step() {
    const std::size_t i = ++turn % raw.size();
    ops::AttentionOptions options;
    options.window = kWindow;
    options.prefix_group = kGroup;
    options.prefix_key = prefix[i].key;
    options.prefix_value = prefix[i].value;
    options.num_past = num_past;
    ops::attention(raw[i].query, raw[i].key, raw[i].value, options);
  }
};

// Slope of ln time over ln length.
double exponent(const std::map<std::int64_t, double>& times) {
  double n = 0.0;
  double sx = 0.0;
  double sy = 0.0;
  double sxx = 0.0;
  double sxy = 0.0;
  for (const auto& [length, time] : times) {
    const double x = std::log(static_cast<double>(length));
    const double y = std::log(time);
    n += 1.0;
    sx += x;
    sy += y;
    sxx += x * x;
    sxy += x * y;
  }
  return (n * sxy - sx * sy) / (n * sxx - sx * sx);
}

class Bench {
 public:
  explicit Bench(const RatioArguments& arguments)
      : arguments_(arguments), fma_roof_gflops_(fma_roof_float32_gflops(cpu_isa())) {}

  std::vector<RatioRow> run() {
    const at::NoGradGuard no_grad;
    for (const int num_threads : arguments_.thread_counts()) {
      at::set_num_threads(num_threads);
      num_threads_ = num_threads;
      for (const std::int64_t length : {2048, 4096, 8192, 16384}) {
        prefill(length);
      }
      for (const std::int64_t length : {4096, 32768, 131072}) {
        one_query(length);
      }
    }
    return std::move(rows_);
  }

  // Of the last number of threads, where all that they need was measured.
  Json claims() const {
    Json found = Json::object();
    if (core_.count(16384) == 1 && core_.count(4096) == 1 && core_.count(8192) == 1) {
      const auto from_4k = [](std::map<std::int64_t, double> times) {
        times.erase(2048);
        return times;
      };
      found["C4c"] = full_.at(16384) / core_.at(16384);
      found["C4d"] = exponent(from_4k(core_));
      found["C4e"] = exponent(from_4k(full_));
      found["C4f"] = core_.at(16384) / window_.at(16384);
    }
    if (decode_core_.count(131072) == 1 && decode_core_.count(4096) == 1) {
      found["C11c"] = decode_core_.at(131072) / decode_full_.at(131072);
      found["C11d"] = decode_core_.at(131072) / decode_core_.at(4096);
    }
    return found;
  }

 private:
  RatioRow new_row(const std::string& table, const std::string& method, std::int64_t length) const {
    RatioRow row;
    row.table = table;
    row.name = method + ", " + std::to_string(length) + " tokens, " + threads_text(num_threads_);
    row.backend = "full attention, ours";
    row.num_threads = num_threads_;
    row.target = 0.0;
    row.fma_roof_gflops = num_threads_ * fma_roof_gflops_;
    return row;
  }

  // All methods of a length take turns with full attention; --only picks lengths by CCA's row.
  void prefill(std::int64_t length) {
    const std::string table = "prefill, 8 heads of 64, float32";
    if (!arguments_.wants(new_row(table, "CCA", length), length == 2048)) {
      return;
    }
    const std::vector<std::int64_t> shape = {1, kHeads, length, kHeadDim};
    const Inputs in{at::randn(shape), at::randn(shape), at::randn(shape)};
    const std::vector<Method> all = methods(length);
    std::vector<Contestant> contestants = {
        {[] {}, [&] { baselines::full(in.query, in.key, in.value); }}};
    for (const Method& method : all) {
      contestants.push_back({[] {}, [&in, &method] { method.attend(in); }});
    }
    const std::string wrong = wrong_of(in);
    const std::vector<Timing> timings =
        wrong.empty() ? time_interleaved(contestants, arguments_.num_repetitions, kRowSeconds)
                      : std::vector<Timing>(contestants.size());
    for (std::size_t i = 0; i < all.size(); ++i) {
      RatioRow row = new_row(table, all[i].name, length);
      row.baseline = timings[0];
      row.ours = timings[i + 1];
      row.wrong = wrong;
      row.flops = 4.0 * kHeads * kHeadDim * pairs_of(all[i], length);
      if (i == 0) {
        const cca::Cost cost = cca::cost(length);
        row.target = length == 16384 ? 4.0 : 0.0;
        row.numbers = {
            {"work_ratio", static_cast<double>(cost.full_pairs) / static_cast<double>(cost.pairs)}};
      }
      add_row(row, rows_);
    }
    full_[length] = timings[0].median_us;
    core_[length] = timings[1].median_us;
    window_[length] = timings[2].median_us;
  }

  // Rows before the first core token are those of full attention.
  static std::string wrong_of(const Inputs& in) {
    const auto head = [](const at::Tensor& x) { return x.narrow(2, 0, kWindow + kGroup - 1); };
    const at::Tensor ours = head(cca::attention(in.query, in.key, in.value).out);
    const at::Tensor full = baselines::full(head(in.query), head(in.key), head(in.value)).out;
    const double error = ours.sub(full).abs().max().item<double>();
    return error <= 1e-5 ? "" : "rows without core tokens differ by " + std::to_string(error);
  }

  void one_query(std::int64_t length) {
    RatioRow row = new_row("one query over a cache, 8 heads of 128, float32", "CCA", length);
    if (!arguments_.wants(row, false)) {
      return;
    }
    Caches caches(length);
    const std::int64_t vectors = kWindow + (length - kWindow) / kGroup;
    const auto timings = time_interleaved(
        {{[] {}, [&] { caches.core_step(); }}, {[] {}, [&] { caches.full_step(); }}},
        arguments_.num_repetitions, kRowSeconds);
    row.ours = timings[0];
    row.baseline = timings[1];
    row.target = length == 131072 ? 8.0 : 0.0;
    row.flops = 4.0 * kHeads * kDecodeHeadDim * static_cast<double>(vectors);
    row.numbers = {{"cache_ratio", static_cast<double>(length) / static_cast<double>(vectors)}};
    add_row(row, rows_);
    decode_core_[length] = timings[0].median_us;
    decode_full_[length] = timings[1].median_us;
  }

  const RatioArguments& arguments_;
  double fma_roof_gflops_;
  int num_threads_ = 1;
  std::vector<RatioRow> rows_;
  std::map<std::int64_t, double> full_;
  std::map<std::int64_t, double> core_;
  std::map<std::int64_t, double> window_;
  std::map<std::int64_t, double> decode_full_;
  std::map<std::int64_t, double> decode_core_;
};

std::vector<RatioRow> measure_all(const RatioArguments& arguments, Json& result) {
  result["note"] =
      "Ratio: the time of our own full attention by that of the form; caches of one query take "
      "turns and are larger than the last-level cache.";
  Bench bench(arguments);
  std::vector<RatioRow> rows = bench.run();
  result["claims"] = bench.claims();
  return rows;
}

}  // namespace
}  // namespace paperlab::bench

int main(int argc, char** argv) {
  return paperlab::bench::run_ratio_bench(argc, argv, paperlab::bench::measure_all);
}
