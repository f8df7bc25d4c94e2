// The paper's numbers, and arithmetic on them: LongBench-E, multi-document exact match, latency and
// memory by length, flexibility, and what its speed-ups are worth by FLOPs.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <limits>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "experiments/cca/ranks.h"
#include "experiments/cca/rows.h"
#include "experiments/cca/study.h"
#include "paperlab/cca/cost.h"

namespace paperlab::experiments::cca {

namespace lib = paperlab::cca;

namespace {

// A line of the LongBench-E tables: six categories, the average that is printed, latency of the
// first token and memory (32K; 64K for the 80K model).
struct LongBench {
  std::array<double, 6> categories;
  double average;
  double latency_s;
  double memory_gb;
};

// LLaMA2-7B-32K and -80K: full, StreamingLLM, LM-Infinite, MInference, CCA; LLaMA3.1-8B-128K and
// Qwen2.5-7B-128K: full, MInference, CCA.
constexpr std::array<LongBench, 16> kLongBench = {
    {{{2.75, 1.85, 12.43, 66.28, 0.34, 48.99}, 22.11, 9.15, 35.58},
     {{4.75, 2.94, 2.97, 48.20, 0.66, 30.16}, 14.95, 5.75, 22.94},
     {{2.04, 2.33, 1.98, 57.45, 0.3, 48.46}, 18.76, 4.72, 26.35},
     {{3.68, 3.05, 10.97, 66.26, 0.61, 42.30}, 21.14, 4.20, 33.52},
     {{3.63, 3.98, 7.79, 61.79, 2.64, 51.36}, 21.86, 2.59, 19.12},
     {{3.22, 2.71, 3.90, 64.98, 0.56, 59.16}, 22.42, 32.43, 60.03},
     {{2.07, 2.32, 0.37, 45.03, 2.67, 37.17}, 14.94, 9.04, 37.45},
     {{2.54, 1.53, 2.22, 61.29, 1.08, 58.54}, 21.20, 8.27, 41.54},
     {{2.44, 3.49, 4.41, 64.26, 0.28, 57.60}, 22.08, 8.14, 54.09},
     {{5.62, 4.34, 8.99, 59.60, 0.48, 54.40}, 22.24, 6.42, 33.86},
     {{16.71, 10.75, 20.32, 68.75, 48.93, 62.10}, 37.93, 9.55, 40.38},
     {{16.33, 10.71, 20.44, 68.41, 48.06, 62.50}, 37.74, 4.93, 35.95},
     {{17.90, 16.41, 19.63, 67.20, 43.76, 61.98}, 37.81, 3.08, 20.63},
     {{16.67, 18.18, 18.70, 66.81, 45.34, 64.56}, 38.38, 10.58, 35.11},
     {{16.20, 17.21, 18.59, 67.10, 38.28, 62.95}, 36.72, 4.86, 32.40},
     {{16.91, 17.07, 18.60, 66.89, 45.50, 63.52}, 38.08, 2.74, 19.31}}};
// Lines of full attention and of CCA.
constexpr std::array<std::pair<std::size_t, std::size_t>, 4> kFullAndCore = {
    {{0, 4}, {5, 9}, {10, 12}, {13, 15}}};
// What an independent re-run found (arXiv:2605.11744): CCA and StreamingLLM, 32K and 80K.
constexpr std::array<std::pair<double, double>, 2> kRerun = {{{21.12, 21.90}, {21.98, 21.56}}};

// Exact match at 4K .. 128K, the average that is printed, and latency at 128K.
struct ExactMatch {
  std::array<double, 6> score;
  double average;
  double latency_s;
};

// Full, StreamingLLM, LM-Infinite, MInference, CCA.
constexpr std::array<ExactMatch, 5> kExactMatch = {
    {{{39.4, 37.8, 37.6, 36.2, 34.6, 30.3}, 36.0, 124.85},
     {{33.6, 26.0, 32.2, 30.6, 27.4, 25.1}, 29.2, 34.74},
     {{31.6, 25.6, 32.4, 32.2, 28.2, 26.3}, 29.4, 32.57},
     {{39.0, 32.4, 37.4, 36.0, 32.3, 28.9}, 34.3, 20.18},
     {{39.3, 33.2, 35.4, 31.4, 35.3, 32.0}, 34.4, 15.89}}};

// Curves by length, 4K .. 128K.
struct Curve {
  const char* name;
  std::array<double, 6> first_token_s;
  std::array<double, 6> next_token_ms;
  std::array<double, 6> cache_gb;
};

constexpr std::array<Curve, 4> kCurves = {{{"full",
                                            {0.50, 0.99, 2.83, 9.15, 32.43, 124.85},
                                            {36.9, 42.3, 69.7, 124.7, 250.5, 586.3},
                                            {2.00, 4.08, 8.16, 16.32, 32.64, 64.00}},
                                           {"MInference",
                                            {1.76, 2.25, 3.01, 4.23, 12.90, 44.50},
                                            {93.1, 93.9, 94.3, 150.0, 296.5, 600.3},
                                            {1.92, 3.76, 7.52, 15.04, 30.72, 61.44}},
                                           {"LM-Infinite",
                                            {0.65, 1.26, 2.49, 4.82, 9.61, 32.57},
                                            {49.7, 64.3, 102.2, 178.5, 335.7, 649.9},
                                            {2.00, 2.00, 2.00, 2.00, 2.00, 2.00}},
                                           {"CCA",
                                            {0.36, 0.69, 1.39, 2.92, 5.68, 15.89},
                                            {26.2, 26.7, 26.9, 28.8, 32.0, 41.6},
                                            {0.62, 0.75, 1.00, 1.50, 2.50, 4.50}}}};

// Latency in seconds and LongBench-E score of one model at eight choices of g and s.
constexpr std::array<std::pair<double, double>, 8> kFlexibility = {{{2.80, 20.55},
                                                                    {2.94, 20.99},
                                                                    {3.10, 21.80},
                                                                    {3.19, 21.56},
                                                                    {3.19, 22.24},
                                                                    {3.41, 22.30},
                                                                    {3.73, 22.00},
                                                                    {3.88, 22.69}}};

constexpr std::array<double, 6> kLengths = {4096, 8192, 16384, 32768, 65536, 131072};

// LLaMA2-7B: parameters of its linear layers, its attention, an A800's bandwidth.
constexpr double kLinearParameters = 6.476e9;
constexpr lib::AttentionShape kLlama = {
    .heads = 32, .kv_heads = 32, .head_dim = 128, .layers = 32, .bytes_per_element = 2};
constexpr double kWeightBytes = 13.2e9;
constexpr double kInfinity = std::numeric_limits<double>::infinity();

template <std::size_t N>
double mean(const std::array<double, N>& values) {
  double sum = 0.0;
  for (const double value : values) {
    sum += value;
  }
  return sum / static_cast<double>(N);
}

void record_long_bench(Run& run) {
  const std::array<const char*, 6> names = {"single_doc", "multi_doc", "summary",
                                            "few_shot",   "synthetic", "code"};
  Columns columns = {{"row", row_numbers(kLongBench.size())}};
  for (std::size_t i = 0; i < names.size(); ++i) {
    std::vector<double> values;
    values.reserve(kLongBench.size());
    for (const LongBench& line : kLongBench) {
      values.push_back(line.categories.at(i));
    }
    columns.emplace_back(names.at(i), values);
  }
  std::vector<double> average;
  std::vector<double> latency;
  std::vector<double> memory;
  average.reserve(kLongBench.size());
  latency.reserve(kLongBench.size());
  memory.reserve(kLongBench.size());
  for (const LongBench& line : kLongBench) {
    average.push_back(line.average);
    latency.push_back(line.latency_s);
    memory.push_back(line.memory_gb);
  }
  columns.emplace_back("average", average);
  columns.emplace_back("first_token", latency);  // published, hence the same in each run
  columns.emplace_back("memory_gb", memory);
  run.series("LongBench-E as published", columns);
}

}  // namespace

void long_bench(Run& run) {
  record_long_bench(run);
  double deviation = 0.0;
  for (const LongBench& line : kLongBench) {
    deviation = std::max(deviation, std::abs(mean(line.categories) - line.average));
  }
  run.claim("C2a", deviation);
  double loss = -kInfinity;
  double saving = kInfinity;
  for (const auto& [full, core] : kFullAndCore) {
    loss = std::max(loss, kLongBench.at(full).average - kLongBench.at(core).average);
    saving = std::min(saving, 1.0 - kLongBench.at(core).memory_gb / kLongBench.at(full).memory_gb);
  }
  run.claim("C2b", loss);
  double margin = kInfinity;
  for (const std::size_t core : {std::size_t{4}, std::size_t{9}}) {
    for (std::size_t i = core - 3; i < core; ++i) {
      margin = std::min(margin, kLongBench.at(core).average - kLongBench.at(i).average);
    }
  }
  run.claim("C3a", margin);
  double rerun = kInfinity;
  for (const auto& [core, streaming] : kRerun) {
    rerun = std::min(rerun, core - streaming);
  }
  run.claim("C3b", rerun);
  run.claim("C5a", saving);
  run.claim("C4k", kLongBench[0].latency_s / kLongBench[4].latency_s);
  run.scalar("first token at 64K, full by CCA, by the table of LongBench-E",
             kLongBench[5].latency_s / kLongBench[9].latency_s);
}

namespace {

// The paper's table: a line for each method.
void record_exact_match(Run& run) {
  constexpr std::array<const char*, 6> kNames = {"4K", "8K", "16K", "32K", "64K", "128K"};
  Columns columns = {{"row", row_numbers(kExactMatch.size())}};
  const auto add = [&columns](const std::string& name, const auto& of_line) {
    std::vector<double> values;
    values.reserve(kExactMatch.size());
    for (const ExactMatch& line : kExactMatch) {
      values.push_back(of_line(line));
    }
    columns.emplace_back(name, values);
  };
  for (std::size_t i = 0; i < kNames.size(); ++i) {
    add(kNames.at(i), [i](const ExactMatch& line) { return line.score.at(i); });
  }
  add("average", [](const ExactMatch& line) { return line.average; });
  add("first_token", [](const ExactMatch& line) { return line.latency_s; });  // published
  run.series("exact match by method as published", columns);
}

}  // namespace

void exact_match(Run& run) {
  record_exact_match(run);
  Columns columns = {{"length", {kLengths.begin(), kLengths.end()}}};
  const std::array<const char*, 5> names = {"full", "StreamingLLM", "LM-Infinite", "MInference",
                                            "CCA"};
  double deviation = 0.0;
  for (std::size_t i = 0; i < names.size(); ++i) {
    const ExactMatch& line = kExactMatch.at(i);
    columns.emplace_back(names.at(i), std::vector<double>(line.score.begin(), line.score.end()));
    run.scalar(std::string("exact match as published, average: ") + names.at(i), line.average);
    deviation = std::max(deviation, std::abs(mean(line.score) - line.average));
  }
  run.series("exact match as published", columns);
  const ExactMatch& full = kExactMatch.front();
  const ExactMatch& core = kExactMatch.back();
  run.claim("C7a", deviation);
  run.claim("C7b", std::min(core.score[4] - full.score[4], core.score[5] - full.score[5]));
  run.claim("C7c", core.average - kExactMatch[3].average);
  run.claim("C4a", full.latency_s / core.latency_s);
}

void efficiency(Run& run) {
  Columns first = {{"length", {kLengths.begin(), kLengths.end()}}};
  Columns next = first;
  Columns cache = first;
  for (const Curve& curve : kCurves) {
    first.emplace_back(curve.name,
                       std::vector<double>(curve.first_token_s.begin(), curve.first_token_s.end()));
    next.emplace_back(curve.name,
                      std::vector<double>(curve.next_token_ms.begin(), curve.next_token_ms.end()));
    cache.emplace_back(curve.name,
                       std::vector<double>(curve.cache_gb.begin(), curve.cache_gb.end()));
  }
  run.series("first token as published", first);
  run.series("next token as published", next);
  run.series("cache as published", cache);
  const Curve& full = kCurves.front();
  const Curve& core = kCurves.back();
  run.claim("C4l", full.first_token_s[4] / core.first_token_s[4]);
  run.claim("C11a", full.next_token_ms.back() / core.next_token_ms.back());
}

void flop_bounds(Run& run) {
  std::map<std::string, std::vector<double>> columns;
  for (std::size_t i = 3; i < kLengths.size(); ++i) {
    const double length = kLengths.at(i);
    const lib::Cost cost = lib::cost(static_cast<std::int64_t>(length), {}, kLlama);
    const double linear = 2.0 * kLinearParameters * length;
    const double full = linear + static_cast<double>(cost.full_flops);
    const double core = linear + static_cast<double>(cost.flops);
    const double full_s = kCurves.front().first_token_s.at(i);
    const double core_s = kCurves.back().first_token_s.at(i);
    columns["length"].push_back(length);
    columns["bound"].push_back(full / core);
    columns["published"].push_back(full_s / core_s);
    columns["attention_alone"].push_back(static_cast<double>(cost.full_flops) /
                                         static_cast<double>(cost.flops));
    columns["tflops_full"].push_back(full / full_s * 1e-12);
    columns["tflops_core"].push_back(core / core_s * 1e-12);
  }
  run.series("speed-up by FLOPs", {columns.begin(), columns.end()});
  run.claim("C4b", columns.at("published").back() / columns.at("bound").back());
  run.claim("C8b", columns.at("attention_alone").back());
  const lib::Cost longest = lib::cost(131072, {}, kLlama);
  const double bytes = (kWeightBytes + static_cast<double>(longest.full_cache_bytes)) /
                       (kWeightBytes + static_cast<double>(longest.cache_bytes));
  const double published =
      kCurves.front().next_token_ms.back() / kCurves.back().next_token_ms.back();
  run.scalar("decoding at 128K: speed-up by bytes read", bytes);
  run.claim("C11b", published / bytes);
  constexpr double kGiB = 1073741824.0;
  for (const auto& [length, published_gb] :
       {std::pair(std::int64_t{32768}, kLongBench[0].memory_gb - kLongBench[4].memory_gb),
        std::pair(std::int64_t{65536}, kLongBench[5].memory_gb - kLongBench[9].memory_gb)}) {
    const lib::Cost cost = lib::cost(length, {}, kLlama);
    const std::string at = " at " + std::to_string(length / 1024) + "K";
    run.scalar("memory, full less CCA, GiB by the cache's formula" + at,
               static_cast<double>(cost.full_cache_bytes - cost.cache_bytes) / kGiB);
    run.scalar("memory, full less CCA, GB as published" + at, published_gb);
  }
}

void published_flexibility(Run& run) {
  std::vector<double> latency;
  std::vector<double> score;
  latency.reserve(kFlexibility.size());
  score.reserve(kFlexibility.size());
  for (const auto& [x, y] : kFlexibility) {
    latency.push_back(x);
    score.push_back(y);
  }
  run.series("flexibility as published", {{"latency", latency}, {"score", score}});
  run.claim("C10a", rank_correlation(latency, score));
}

}  // namespace paperlab::experiments::cca
