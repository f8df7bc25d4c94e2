// Arithmetic on the paper's own numbers: Tables 1, 3 and 5, Fig. 1.
#include <algorithm>
#include <array>
#include <cmath>
#include <string>

#include "experiments/mudd/rows.h"
#include "paperlab/mudd/complexity.h"
#include "paperlab/mudd/layout.h"

namespace paperlab::experiments::mudd {

namespace lib = paperlab::mudd;

namespace {

// A row of Table 1: ratios in percent with the digits printed.
struct CostRow {
  std::int64_t num_layers;
  std::int64_t d_model;
  double params;
  double flops;
  double half_digit_of_flops;
};

constexpr std::int64_t kTable1Length = 4096;
constexpr std::array<CostRow, 4> kTable1 = {{{24, 2048, 0.22, 0.38, 0.005},
                                             {42, 1536, 0.49, 0.8, 0.05},
                                             {32, 2560, 0.23, 0.4, 0.05},
                                             {32, 4096, 0.14, 0.26, 0.005}}};

// Parameters of generators and static weights in the released configuration, by counting tensors.
std::int64_t released_generator_params(std::int64_t num_layers, std::int64_t d_model) {
  lib::MuddConfig config;
  config.vocab_size = 1;
  config.num_layers = num_layers;
  config.d_model = d_model;
  config.num_heads = 16;
  config.d_ff = d_model;
  config.hidden_round = 64;
  std::int64_t count = 0;
  for (const auto& spec : lib::parameter_specs(config)) {
    if (spec.name.starts_with("dense_bs.") || spec.name.starts_with("dynamic_dense.")) {
      std::int64_t size = 1;
      for (const std::int64_t n : spec.shape) {
        size *= n;
      }
      count += size;
    }
  }
  return count;
}

// Released sizes: 405M, 2.8B and 6.9B (layers, width).
constexpr std::array<std::pair<std::int64_t, std::int64_t>, 3> kReleased = {
    {{24, 1024}, {32, 2560}, {32, 4096}}};

constexpr std::size_t kTasks = 11;  // LAMBADA .. RACE-H

constexpr std::array<const char*, kTasks> kTaskNames = {
    "LAMBADA", "PIQA",  "WinoGrande", "ARC-E",  "ARC-C", "SciQ",
    "LogiQA",  "BoolQ", "HellaSwag",  "RACE-M", "RACE-H"};

// A row of Table 3: accuracies in percent and the average that is printed.
struct EvalRow {
  double params;  // 1e9
  std::array<double, kTasks> accuracy;
  double average;
};

// Pythia 1.4B, 2.8B, 6.9B, 12B, then MUDDPythia 1.4B, 2.8B, then MUDDFormer 2.8B.
constexpr std::array<EvalRow, 7> kZeroShot = {
    {{1.4, {61.6, 71.0, 57.2, 60.5, 26.1, 86.6, 21.4, 63.3, 40.5, 37.3, 33.9}, 50.8},
     {2.8, {64.7, 73.9, 59.4, 64.4, 29.5, 88.2, 21.2, 64.5, 45.4, 38.1, 34.9}, 53.1},
     {6.9, {67.3, 75.2, 60.9, 67.3, 31.3, 89.7, 25.3, 63.7, 48.0, 40.6, 37.0}, 55.1},
     {12., {70.5, 76.0, 63.9, 70.2, 31.8, 90.2, 22.4, 67.4, 50.3, 40.6, 38.3}, 56.5},
     {1.4, {63.9, 71.8, 57.4, 61.6, 26.2, 87.2, 23.0, 62.0, 42.6, 38.7, 34.7}, 51.7},
     {2.8, {68.5, 74.6, 61.4, 66.5, 31.9, 90.4, 21.5, 68.1, 46.8, 39.0, 36.7}, 55.0},
     {2.8, {70.7, 75.7, 63.4, 70.4, 34.2, 91.8, 24.0, 67.4, 49.5, 40.6, 38.1}, 56.9}}};
constexpr std::array<EvalRow, 7> kFiveShot = {
    {{1.4, {54.5, 71.0, 57.5, 63.1, 28.9, 92.2, 22.9, 63.0, 40.5, 35.4, 34.6}, 51.2},
     {2.8, {60.5, 73.6, 60.6, 67.3, 32.3, 94.3, 21.7, 65.6, 45.1, 38.4, 35.6}, 54.1},
     {6.9, {63.8, 75.5, 63.7, 70.2, 35.6, 95.1, 27.0, 65.7, 48.1, 39.0, 36.5}, 56.4},
     {12., {67.3, 76.0, 64.2, 71.0, 36.5, 95.3, 21.8, 68.0, 50.3, 40.1, 38.8}, 57.2},
     {1.4, {58.2, 73.0, 59.0, 64.1, 28.2, 94.0, 23.8, 61.5, 42.6, 37.9, 35.2}, 52.5},
     {2.8, {63.6, 75.5, 63.6, 70.3, 34.0, 95.5, 28.1, 67.5, 47.1, 44.5, 37.3}, 57.0},
     {2.8, {65.6, 76.4, 66.8, 73.0, 39.2, 95.6, 25.2, 70.9, 49.8, 41.4, 38.0}, 58.4}}};
enum Model : std::uint8_t { kPythia69 = 2, kPythia12 = 3, kMuddPythia28 = 5, kMuddFormer28 = 6 };
// Perplexities.
constexpr std::array<double, 7> kPile = {7.29, 6.63, 6.29, 6.01, 6.92, 6.29, 6.01};
constexpr std::array<double, 7> kFlan = {9.30, 8.16, 7.85, 7.26, 8.54, 7.50, 7.08};

double average(const EvalRow& row) {
  double sum = 0.0;
  for (const double accuracy : row.accuracy) {
    sum += accuracy;
  }
  return sum / kTasks;
}

double largest_deviation(const std::array<EvalRow, 7>& rows) {
  double worst = 0.0;
  for (const EvalRow& row : rows) {
    worst = std::max(worst, std::abs(average(row) - row.average));
  }
  return worst;
}

// A curve of Fig. 1: compute is 300B tokens times the parameters.
void curve(Run& run, const std::string& name, const std::array<EvalRow, 7>& rows, std::size_t first,
           std::size_t last) {
  std::vector<double> compute;
  std::vector<double> accuracy;
  for (std::size_t i = first; i < last; ++i) {
    compute.push_back(300.0 * rows.at(i).params);
    accuracy.push_back(average(rows.at(i)));
  }
  run.series(name, {{"compute", compute}, {"accuracy", accuracy}});
}

// Accuracies, and the averages beside those that are printed.
void record_table3(Run& run, const std::string& name, const std::array<EvalRow, 7>& rows) {
  std::vector<std::pair<std::string, std::vector<double>>> columns = {
      {"pile_perplexity", {kPile.begin(), kPile.end()}},
      {"flan_perplexity", {kFlan.begin(), kFlan.end()}}};
  for (std::size_t task = 0; task < kTasks; ++task) {
    auto& accuracy = columns.emplace_back(kTaskNames.at(task), std::vector<double>()).second;
    for (const EvalRow& row : rows) {
      accuracy.push_back(row.accuracy.at(task));
    }
  }
  std::vector<double> printed;
  std::vector<double> recomputed;
  for (const EvalRow& row : rows) {
    printed.push_back(row.average);
    recomputed.push_back(average(row));
  }
  columns.emplace_back("average", printed);
  columns.emplace_back("recomputed", recomputed);
  run.series(name, columns);
}

}  // namespace

void table1(Run& run) {
  std::vector<double> layers;
  std::vector<double> width;
  std::vector<double> params;
  std::vector<double> flops;
  std::vector<double> published_params;
  std::vector<double> published_flops;
  double misses = 0.0;
  for (const CostRow& row : kTable1) {
    const lib::Complexity cost = lib::complexity(row.num_layers, row.d_model, kTable1Length);
    layers.push_back(static_cast<double>(row.num_layers));
    width.push_back(static_cast<double>(row.d_model));
    params.push_back(100.0 * cost.param_ratio);
    flops.push_back(100.0 * cost.flop_ratio);
    published_params.push_back(row.params);
    published_flops.push_back(row.flops);
    misses += std::abs(params.back() - row.params) <= 0.005 ? 0.0 : 1.0;
    misses += std::abs(flops.back() - row.flops) <= row.half_digit_of_flops ? 0.0 : 1.0;
  }
  run.series("Table 1", {{"layers", layers},
                         {"width", width},
                         {"percent_params", params},
                         {"percent_flops", flops},
                         {"published_percent_params", published_params},
                         {"published_percent_flops", published_flops}});
  run.claim("C9a", misses);
  double unlike = 0.0;
  for (const auto& [num_layers, d_model] : kReleased) {
    const std::int64_t counted = released_generator_params(num_layers, d_model);
    const lib::Complexity cost = lib::complexity(num_layers, d_model, kTable1Length);
    unlike += counted == cost.generator_params_released ? 0.0 : 1.0;
    run.scalar("Table 1 generator parameters as released, " + std::to_string(num_layers) + "x" +
                   std::to_string(d_model),
               static_cast<double>(counted));
  }
  run.claim("C9b", unlike);
}

void table3(Run& run) {
  record_table3(run, "Table 3, 0-shot", kZeroShot);
  record_table3(run, "Table 3, 5-shot", kFiveShot);
  curve(run, "Fig. 1 Pythia, 0-shot", kZeroShot, 0, 4);
  curve(run, "Fig. 1 MUDDPythia, 0-shot", kZeroShot, 4, 6);
  curve(run, "Fig. 1 Pythia, 5-shot", kFiveShot, 0, 4);
  curve(run, "Fig. 1 MUDDPythia, 5-shot", kFiveShot, 4, 6);
  run.claim("C6a", std::max(largest_deviation(kZeroShot), largest_deviation(kFiveShot)));
  run.claim("C6b", kZeroShot[kPythia69].params / kZeroShot[kMuddPythia28].params);
  run.claim("C6c", average(kZeroShot[kMuddPythia28]) - average(kZeroShot[kPythia69]));
  run.claim("C6d", kPile[kMuddPythia28] - kPile[kPythia69]);
  run.claim("C7a", kZeroShot[kPythia12].params / kZeroShot[kMuddPythia28].params);
  run.claim("C7b", average(kFiveShot[kMuddPythia28]) - average(kFiveShot[kPythia12]));
  run.claim("C8a", average(kZeroShot[kMuddFormer28]) - average(kZeroShot[kPythia12]));
  run.claim("C8b", average(kFiveShot[kMuddFormer28]) - average(kFiveShot[kPythia12]));
  run.claim("C8c", kFlan[kMuddFormer28] - kFlan[kPythia12]);
}

void published_table5(Run& run) {
  // Transformer++, static, dynamic, multiway static, multiway dynamic, MUDDFormer, without Q, K, V,
  // R, Transformer++ with re-allocation.
  const std::vector<double> perplexity = {11.68, 11.44, 11.09, 11.27, 10.83, 10.77,
                                          10.89, 10.90, 11.05, 11.14, 11.93};
  std::vector<double> number;
  std::vector<double> gap;
  for (const double value : perplexity) {
    number.push_back(static_cast<double>(number.size() + 1));
    gap.push_back(std::log(value) - std::log(perplexity.front()));
  }
  run.series("Table 5 as published",
             {{"row", number}, {"perplexity", perplexity}, {"loss_less_base", gap}});
}

}  // namespace paperlab::experiments::mudd
