// Table 6 (activation memory, counted allocation by allocation), Table 7's memory column, and what
// depth aggregation moves beside the arithmetic that the paper counts.
#include <ATen/Parallel.h>
#include <ATen/ops/zeros.h>

#include <array>
#include <map>
#include <memory>
#include <string>
#include <utility>

#include "experiments/common/side_by_side.h"
#include "experiments/mudd/jobs.h"
#include "experiments/mudd/memory.h"
#include "paperlab/mudd/complexity.h"
#include "paperlab/mudd/initial_values.h"
#include "paperlab/mudd/model.h"
#include "paperlab/train/loss.h"

namespace paperlab::experiments::mudd {

namespace lib = paperlab::mudd;

namespace {

struct Memory {
  double kept = 0.0;  // after the forward pass, for the backward pass; in units of one [B, T, D]
  double peak = 0.0;  // of both passes, likewise; gradients of parameters included
};

// On the calling thread alone.
Memory measure(const Config& config, const std::string& method, MemoryMeter& meter) {
  at::set_num_threads(1);
  const lib::MuddConfig sizes = model_config(config, method, {config.num_layers, config.d_model});
  std::vector<at::Tensor> values =
      lib::initial_values(sizes, 0, at::kFloat, {config.init_std, config.embedding_std});
  for (at::Tensor& value : values) {
    value.requires_grad_();
  }
  const std::shared_ptr<nn::Decoder> decoder = lib::make_decoder(sizes, std::move(values));
  const at::Tensor tokens = at::zeros({config.batch_size, config.seq_len + 1}, at::kLong);
  const auto unit = static_cast<double>(config.batch_size * config.seq_len * config.d_model * 4);
  const std::int64_t before = meter.alive();
  meter.reset_peak();
  const at::Tensor loss = train::next_token_loss(*decoder, tokens);
  Memory memory;
  memory.kept = static_cast<double>(meter.alive() - before) / unit;
  loss.backward();
  memory.peak = static_cast<double>(meter.peak() - before) / unit;
  return memory;
}

// A row of Table 7: extra memory in percent at context 2048.
struct MemoryRow {
  std::int64_t num_layers;
  std::int64_t d_model;
  std::int64_t num_heads;
  double percent;
};

// MUDDFormer, then MUDDPythia.
constexpr std::array<MemoryRow, 7> kTable7 = {{{24, 1024, 16, 29},
                                               {24, 1536, 24, 21},
                                               {24, 2048, 32, 28},
                                               {32, 2560, 32, 22},
                                               {32, 4096, 32, 17},
                                               {24, 2048, 16, 28},
                                               {32, 2560, 32, 25}}};

}  // namespace

void table6(const Config& config, Run& run) {
  const std::vector<std::string> methods = {"base", "static", "multiway_dynamic"};
  std::vector<Memory> found(methods.size());
  run_side_by_side(1, 1,
                   [&](std::size_t) {
                     MemoryMeter meter(c10::kCPU);
                     for (std::size_t i = 0; i < methods.size(); ++i) {
                       found[i] = measure(config, methods[i], meter);
                     }
                   },
                   {[](std::size_t) {}, [] {}});
  for (std::size_t i = 0; i < methods.size(); ++i) {
    const std::string name = "Table 6 [B, T, D] tensors, " + methods[i] + ": ";
    run.scalar(name + "kept by the forward pass", found[i].kept);
    run.scalar(name + "at the peak", found[i].peak);
    if (i > 0) {
      run.scalar(name + "at the peak more than base", found[i].peak - found[0].peak);
    }
  }
  const auto layers = static_cast<double>(config.num_layers);
  run.scalar("Table 6 formula, 16 bit: static, [B, T, D] tensors more than base", layers);
  run.scalar("Table 6 formula, 16 bit: multiway_dynamic, [B, T, D] tensors more than base",
             layers + 3.0);
  std::vector<double> row;
  std::vector<double> published;
  std::vector<double> formula;
  for (const MemoryRow& entry : kTable7) {
    const lib::Complexity cost =
        lib::complexity(entry.num_layers, entry.d_model, 2048, entry.num_heads);
    row.push_back(static_cast<double>(row.size() + 1));
    published.push_back(entry.percent);
    formula.push_back(100.0 * cost.memory_ratio_mudd.value_or(0.0));
  }
  run.series("Table 7 extra memory",
             {{"row", row}, {"published_percent", published}, {"formula_percent", formula}});
}

void traffic(Run& run) {
  constexpr double kTokens = 8192.0;
  constexpr double kBytes = 2.0;         // bfloat16
  constexpr double kBandwidth = 4.8e12;  // of an H200, bytes a second
  constexpr double kSpeed = 600e12;      // FLOP a second in large products
  std::map<std::string, std::vector<double>> columns;
  for (const auto& [num_layers, d_model] :
       {std::pair(24, 2048), std::pair(42, 1536), std::pair(32, 2560), std::pair(32, 4096)}) {
    double fused = 0.0;
    double fused_backward = 0.0;
    double eager = 0.0;
    for (int i = 1; i <= num_layers; ++i) {
      const double sources = i + 1.0;
      const double ways = i < num_layers ? 4.0 : 1.0;
      fused += sources + ways;
      fused_backward += 3.0 * sources + ways;
      eager += 5.0 * ways * sources - 3.0 * ways;
    }
    const double unit = kTokens * d_model * kBytes;
    const lib::Complexity cost = lib::complexity(num_layers, d_model, 4096);
    const double base_s = 2.0 * static_cast<double>(cost.base_params) * kTokens / kSpeed;
    columns["layers"].push_back(num_layers);
    columns["width"].push_back(d_model);
    columns["percent_flops"].push_back(100.0 * cost.flop_ratio);
    columns["fused_forward_gb"].push_back(fused * unit / 1e9);
    columns["fused_backward_gb"].push_back(fused_backward * unit / 1e9);
    columns["eager_forward_gb"].push_back(eager * unit / 1e9);
    columns["percent_of_forward_fused"].push_back(100.0 * fused * unit / kBandwidth / base_s);
    columns["percent_of_forward_eager"].push_back(100.0 * eager * unit / kBandwidth / base_s);
  }
  run.series("traffic", {columns.begin(), columns.end()});
}

}  // namespace paperlab::experiments::mudd
