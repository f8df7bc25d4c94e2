// regular_language_bench --out FILE [--machine NAME] [--repetitions N]
//
// One training step on all strings of even pairs: the loss gradient for arbitrary u and w, both
// last tokens, the update included, the loss not logged, float64; against eager LibTorch with
// autograd on the explicit batch. Prints a table and writes it as JSON. Exit code 1 if a gradient
// is wrong.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <string>
#include <utility>
#include <vector>

#include "bench/support/eager_one_layer.h"
#include "bench/support/machine.h"
#include "bench/support/timing.h"
#include "bench/support/train_step.h"
#include "kernels/one_layer_fold/one_layer_fold.h"
#include "paperlab/core/cpu_isa.h"
#include "paperlab/core/error.h"
#include "paperlab/core/json.h"
#include "paperlab/regular_language/dataset_internal.h"

namespace paperlab::bench {
namespace {

using regular_language::Method;
using regular_language::Parameters;
using regular_language::TrainOptions;

// The gradients may differ by this share of the largest entry.
constexpr double kTolerance = 1e-12;
constexpr double kNoisyPercent = 20.0;

// Floating-point operations of one string; a fused multiply-add counts as two. exp takes 31, the
// margin and Q and R take 7, scores and sums over rows and columns take 6 in the fold. The loop
// adds to 2 scores and 4 accumulators at each position.
constexpr double kFoldFlops = 44.0;
double loop_flops(int length) { return 41.0 + 6.0 * (length - 1); }

struct Arguments {
  std::string out;
  std::string machine;
  int num_repetitions = 21;
};

struct Row {
  Row(std::string named, double least) : name(std::move(named)), target(least) {}

  std::string name;
  double target;  // least ratio; 0: none
  Timing ours;
  Timing baseline;
  double num_strings = 0.0;
  double flops = 0.0;     // of a step
  int num_threads = 1;    // of ours
  bool is_wrong = false;  // not timed
};

TrainOptions options_of(Method method, int max_length) {
  TrainOptions options;
  options.method = method;
  options.max_length = max_length;
  options.init_std = 1.0;
  options.seed = 7;
  return options;
}

double strings_of(int max_length) { return std::ldexp(1.0, max_length + 1) - 2.0; }

double flops_of(Method method, int max_length) {
  double flops = 0.0;
  for (int length = 1; length <= max_length; ++length) {
    flops += std::ldexp(method == Method::kFold ? kFoldFlops : loop_flops(length), length);
  }
  return flops;
}

// Kernels keep w [query, key], the baseline takes [key, query].
EagerParameters transposed(const Parameters& from) {
  const std::size_t width = from.u.size();
  EagerParameters to{from.u, std::vector<double>(from.w.size())};
  for (std::size_t i = 0; i < to.w.size(); ++i) {
    to.w[i] = from.w[i % width * width + i / width];
  }
  return to;
}

bool agree(const std::vector<double>& a, const std::vector<double>& b) {
  double largest = 0.0;
  double error = 0.0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    largest = std::max(largest, std::fabs(a[i]));
    error = std::max(error, std::fabs(a[i] - b[i]));
  }
  return a.size() == b.size() && error <= kTolerance * largest;  // false for NaN
}

// Gradient at the start and state after one step.
bool is_correct(TrainStep& ours, EagerEvenPairs& eager) {
  ours.reset();
  eager.set(transposed(ours.state()));
  const EagerParameters gradient = transposed(ours.gradient());
  const EagerParameters expected = eager.gradient();
  ours.step();
  eager.step(0.1, 0.2);
  const EagerParameters state = transposed(ours.state());
  const EagerParameters expected_state = eager.get();
  return agree(gradient.u, expected.u) && agree(gradient.w, expected.w) &&
         agree(state.u, expected_state.u) && agree(state.w, expected_state.w);
}

Contestant contestant(TrainStep& ours) {
  return {[&ours] { ours.reset(); }, [&ours] { ours.step(); }};
}

Contestant contestant(EagerEvenPairs& eager, const EagerParameters& start, int num_threads) {
  return {[&eager, &start, num_threads] {
            set_eager_threads(num_threads);
            eager.set(start);
          },
          [&eager] { eager.step(0.1, 0.2); }};
}

const char* name_of(Method method) { return method == Method::kFold ? "fold" : "loop"; }

const char* name_of(EagerBatch batch) {
  switch (batch) {
    case EagerBatch::kPerLength:
      break;
    case EagerBatch::kPadded:
      return ", against one padded batch";
    case EagerBatch::kTabulated:
      return ", against tabulated exponentials in eager calls";
  }
  return "";
}

Row one_thread(Method method, int max_length, EagerBatch batch, double target, int repetitions) {
  Row row(std::string(name_of(method)) + " L=" + std::to_string(max_length) + ", 1 thread" +
              name_of(batch),
          target);
  row.num_strings = strings_of(max_length);
  row.flops = flops_of(method, max_length);
  TrainStep ours(options_of(method, max_length), 1);
  EagerEvenPairs eager(max_length, 2.0, batch);
  set_eager_threads(1);
  row.is_wrong = !is_correct(ours, eager);
  if (row.is_wrong) {
    return row;
  }
  ours.reset();
  const EagerParameters start = transposed(ours.state());
  const auto timings =
      time_interleaved({contestant(ours), contestant(eager, start, 1)}, repetitions);
  row.ours = timings[0];
  row.baseline = timings[1];
  return row;
}

// Two rows: two threads against the better of the baseline's 1 and 2, and against our one thread.
std::vector<Row> two_threads(int max_length, int repetitions) {
  const std::string name = "fold L=" + std::to_string(max_length) + ", 2 threads";
  Row against_eager{name + ", against the better of eager's 1 and 2", 120.0};
  Row against_one{name + ", against its own 1 thread", 1.7};
  for (Row* row : {&against_eager, &against_one}) {
    row->num_strings = strings_of(max_length);
    row->flops = flops_of(Method::kFold, max_length);
    row->num_threads = 2;
  }
  TrainStep ours(options_of(Method::kFold, max_length), 2);
  TrainStep one(options_of(Method::kFold, max_length), 1);
  EagerEvenPairs eager(max_length, 2.0, EagerBatch::kPerLength);
  against_eager.is_wrong = against_one.is_wrong = !is_correct(ours, eager);
  if (against_one.is_wrong) {
    return {against_eager, against_one};
  }
  ours.reset();
  const EagerParameters start = transposed(ours.state());
  const auto own = time_interleaved({contestant(ours), contestant(one)}, repetitions);
  against_one.ours = own[0];
  against_one.baseline = own[1];
  const auto all = time_interleaved(
      {contestant(ours), contestant(eager, start, 1), contestant(eager, start, 2)}, repetitions);
  against_eager.ours = all[0];
  against_eager.baseline = all[1].median_us <= all[2].median_us ? all[1] : all[2];
  return {against_eager, against_one};
}

double spread_percent(const Row& row) {
  return std::max(row.ours.spread_percent(), row.baseline.spread_percent());
}

double ratio(const Row& row) { return row.baseline.median_us / row.ours.median_us; }

Json json_of(const Row& row, double roof_gflops) {
  Json json = {{"case", row.name}};
  if (row.target > 0.0) {
    json["target"] = json_number(row.target);
  }
  if (row.is_wrong) {
    json["case"] = row.name + ": wrong gradient, not timed";
    return json;
  }
  const double gflops = row.flops / row.ours.median_us * 1e-3;
  json["ours_us"] = json_number(row.ours.median_us);
  json["ours_band_us"] = {json_number(row.ours.low_us), json_number(row.ours.high_us)};
  json["baseline_us"] = json_number(row.baseline.median_us);
  json["baseline_band_us"] = {json_number(row.baseline.low_us), json_number(row.baseline.high_us)};
  json["ours_cpu_us"] = json_number(row.ours.cpu_us);
  json["baseline_cpu_us"] = json_number(row.baseline.cpu_us);
  json["ratio"] = json_number(ratio(row));
  json["spread_percent"] = json_number(spread_percent(row));
  json["noisy"] = spread_percent(row) > kNoisyPercent;
  json["share_of_fma_roof"] = json_number(gflops / (roof_gflops * row.num_threads));
  json["ns_per_string"] = json_number(1e3 * row.ours.median_us / row.num_strings);
  return json;
}

void print(const Row& row, double roof_gflops) {
  if (row.is_wrong) {
    std::printf("%-62s wrong gradient: not timed\n", row.name.c_str());
    return;
  }
  const Json json = json_of(row, roof_gflops);
  std::printf("%-62s %10.2f us %12.2f us %8.2fx", row.name.c_str(), row.ours.median_us,
              row.baseline.median_us, ratio(row));
  if (row.target > 0.0) {
    std::printf("  target %3gx%s", row.target, ratio(row) < row.target ? " MISSED" : "");
  }
  std::printf("  (CPU time: %.0fx)", row.baseline.cpu_us / row.ours.cpu_us);
  std::printf("  %.2f ns/string, %.0f %% of the FMA roof, spread %.0f %%%s\n",
              json["ns_per_string"].get<double>(), 100.0 * json["share_of_fma_roof"].get<double>(),
              spread_percent(row), spread_percent(row) > kNoisyPercent ? " noisy" : "");
  std::fflush(stdout);
}

std::vector<Row> run(const Arguments& arguments, double roof_gflops) {
  std::vector<Row> rows;
  const auto add = [&](const Row& row) {
    print(row, roof_gflops);
    rows.push_back(row);
  };
  const int n = arguments.num_repetitions;
  add(one_thread(Method::kFold, 6, EagerBatch::kPerLength, 150.0, n));
  add(one_thread(Method::kFold, 12, EagerBatch::kPerLength, 100.0, n));
  add(one_thread(Method::kFold, 16, EagerBatch::kPerLength, 150.0, n));
  add(one_thread(Method::kStrings, 6, EagerBatch::kPerLength, 30.0, n));
  for (const Row& row : two_threads(16, n)) {
    add(row);
  }
  // Stronger baselines than a training script would have: fewer calls, or less work for each
  // string.
  add(one_thread(Method::kFold, 6, EagerBatch::kPadded, 0.0, n));
  for (const int max_length : {6, 12, 16}) {
    add(one_thread(Method::kFold, max_length, EagerBatch::kTabulated, 0.0, n));
  }
  return rows;
}

// Bytes that the fold itself allocates for strings of 20 tokens; the limit is 1 MiB.
std::size_t fold_bytes() {
  return kernels::FoldPlan(regular_language::affine_groups(options_of(Method::kFold, 20)))
      .num_bytes();
}

// Exits with 2 on arguments that it doesn't know.
Arguments parse(int argc, char** argv) {
  Arguments arguments;
  for (int i = 1; i < argc; ++i) {
    const std::string name = argv[i];
    const bool is_known = name == "--out" || name == "--machine" || name == "--repetitions";
    if (!is_known || i + 1 == argc) {
      std::fprintf(stderr, "%s: usage: --out FILE [--machine NAME] [--repetitions N]\n", argv[0]);
      std::exit(2);
    }
    const std::string value = argv[++i];
    if (name == "--out") {
      arguments.out = value;
    } else if (name == "--machine") {
      arguments.machine = value;
    } else {
      arguments.num_repetitions =
          static_cast<int>(std::clamp(std::strtol(value.c_str(), nullptr, 10), 3L, 1000L));
    }
  }
  return arguments;
}

int bench(const Arguments& arguments) {
  Json result = describe_machine(arguments.machine);
  const double roof = result["fma_roof_gflops"].get<double>();
  std::printf("%s, %s, %.1f GFLOP/s of one thread's fused multiply-adds\n",
              result["cpu"].get<std::string>().c_str(), cpu_isa_name(cpu_isa()), roof);
  bool is_wrong = false;
  result["rows"] = Json::array();
  for (const Row& row : run(arguments, roof)) {
    result["rows"].push_back(json_of(row, roof));
    is_wrong = is_wrong || row.is_wrong;
  }
  result["claims"] = Json::object();
  result["fold_bytes_at_20"] = fold_bytes();
  std::printf("fold's own memory at L=20: %zu bytes, limit %d\n", fold_bytes(), 1 << 20);
  if (!arguments.out.empty()) {
    write_json(arguments.out, result);
    std::printf("%s\n", arguments.out.c_str());
  }
  return is_wrong ? 1 : 0;
}

}  // namespace
}  // namespace paperlab::bench

int main(int argc, char** argv) {
  try {
    return paperlab::bench::bench(paperlab::bench::parse(argc, argv));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s: %s\n", argv[0], error.what());
    return 1;
  }
}
