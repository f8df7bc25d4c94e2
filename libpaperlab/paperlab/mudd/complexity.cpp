#include "paperlab/mudd/complexity.h"

#include <string>

#include "paperlab/core/error.h"
#include "paperlab/mudd/config.h"

namespace paperlab::mudd {
namespace {

constexpr char kFunction[] = "complexity";
constexpr std::int64_t kMaxSize = 0x7fffffff;
constexpr std::int64_t kMaxLayers = 10'000;
constexpr double kMaxCount = 9e18;  // below 2^63

void check_count(const char* name, std::int64_t value, std::int64_t max = kMaxSize) {
  require<ValueError>(value >= 1 && value <= max, kFunction,
                      std::string(name) + " must be an integer from 1 to " + std::to_string(max),
                      std::to_string(value));
}

// With the generators' hidden sizes, ways and sources as the configuration has them.
std::int64_t released_params(std::int64_t num_layers, std::int64_t d_model) {
  MuddConfig config;
  config.num_layers = num_layers;
  config.hidden_round = 64;
  std::int64_t total = 0;
  for (std::int64_t layer = 0; layer < num_layers; ++layer) {
    const auto weights =
        static_cast<std::int64_t>(ways_of(config, layer).size() * sources_of(config, layer).size());
    total += hidden_size(config, layer) * (d_model + weights) + weights;
  }
  return total;
}

// The sums are at most this multiple of the products that they consist of.
void check_fits(double num_layers, double width, double length) {
  const double hidden = 4.0 * (num_layers + 1.0) + 64.0;
  const double block =
      4.0 * width * hidden + 2.0 * hidden * hidden + 24.0 * width * width + 2.0 * width * length;
  require<ValueError>(num_layers * length * block < kMaxCount, kFunction,
                      "num_layers, d_model and seq_len must give counts below 2^63",
                      std::to_string(num_layers * length * block));
}

}  // namespace

Complexity complexity(std::int64_t num_layers, std::int64_t d_model, std::int64_t seq_len,
                      std::optional<std::int64_t> num_heads) {
  check_count("num_layers", num_layers, kMaxLayers);
  check_count("d_model", d_model);
  check_count("seq_len", seq_len);
  if (num_heads) {
    check_count("num_heads", *num_heads);
  }
  const auto layers = static_cast<double>(num_layers);
  const auto width = static_cast<double>(d_model);
  const auto length = static_cast<double>(seq_len);
  check_fits(layers, width, length);
  Complexity result;
  result.eta = (layers + 3.0) / width;
  result.rho = length / width;
  result.param_ratio = result.eta / 6.0;
  result.flop_ratio = result.eta / (3.0 + result.rho / 4.0);
  for (std::int64_t i = 1; i <= num_layers; ++i) {
    const std::int64_t hidden = 4 * (i + 1);
    result.sum_hidden += hidden;
    result.sum_hidden_squared += hidden * hidden;
  }
  result.extra_params = d_model * result.sum_hidden + result.sum_hidden_squared;
  result.base_params = 12 * num_layers * d_model * d_model;
  result.extra_flops = seq_len * (4 * d_model * result.sum_hidden + 2 * result.sum_hidden_squared);
  result.base_flops = 2 * num_layers * d_model * seq_len * (12 * d_model + seq_len);
  result.generator_params = result.extra_params + result.sum_hidden;
  result.generator_params_released = released_params(num_layers, d_model);
  if (num_heads) {
    const double all = layers + 17.0 + 3.0 * static_cast<double>(*num_heads) * result.rho;
    result.memory_ratio_denseformer = layers / all;
    result.memory_ratio_mudd = (layers + 3.0) / all;
  }
  return result;
}

}  // namespace paperlab::mudd
