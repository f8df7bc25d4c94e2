#include "paperlab/mudd/config.h"

#include <algorithm>
#include <cmath>
#include <string_view>

#include "paperlab/core/error.h"

namespace paperlab::mudd {
namespace {

constexpr char kModel[] = "MuddFormer";
constexpr std::int64_t kMaxSize = 0x7fffffff;  // of any count; products of two stay below 2^62
constexpr std::int64_t kMaxLayers = 10'000;
// Above any model; their bytes fit into the addresses of a process, and sums of sizes into 64 bits.
constexpr double kMaxParameters = 1e13;
constexpr std::string_view kWays = "QKVR";
constexpr double kPythiaRotary = 0.25;
constexpr std::int64_t kMaxHeadDim = 256;  // of the attention kernel

void check_count(const char* function, const char* name, std::int64_t value,
                 std::int64_t max = kMaxSize) {
  require<ValueError>(value >= 1 && value <= max, function,
                      std::string(name) + " must be an integer from 1 to " + std::to_string(max),
                      std::to_string(value));
}

void check_positive(const char* function, const char* name, double value) {
  require<ValueError>(std::isfinite(value) && value > 0.0, function,
                      std::string(name) + " must be a finite number > 0", std::to_string(value));
}

void check_heads(const char* function, const MuddConfig& config) {
  check_count(function, "num_heads", config.num_heads);
  require<ValueError>(
      config.head_dim != 0 || config.d_model % config.num_heads == 0, function,
      "d_model must be a multiple of num_heads (" + std::to_string(config.num_heads) + ')',
      std::to_string(config.d_model));
  const std::int64_t head_dim = head_dim_of(config);
  check_count(function, "the head's width d_model / num_heads (head_dim)", head_dim, kMaxHeadDim);
  require<ValueError>(head_dim % 2 == 0, function,
                      "the head's width d_model / num_heads (head_dim) must be even: RoPE turns "
                      "pairs",
                      std::to_string(head_dim));
  const std::int64_t num_kv_heads = num_kv_heads_of(config);
  check_count(function, "num_kv_heads", num_kv_heads);
  require<ValueError>(
      config.num_heads % num_kv_heads == 0, function,
      "num_kv_heads must be a divisor of num_heads (" + std::to_string(config.num_heads) + ')',
      std::to_string(num_kv_heads));
  require<ValueError>(config.rotary_pct >= 0.0 && config.rotary_pct <= 1.0, function,
                      "rotary_pct must be in (0, 1], or 0 for the block's own",
                      std::to_string(config.rotary_pct));
}

void check_ways(const char* function, const std::string& ways) {
  std::size_t next = 0;
  bool is_ordered = !ways.empty();
  for (const char way : ways) {
    const std::size_t at = kWays.find(way, next);
    is_ordered = is_ordered && at != std::string_view::npos;
    next = at + 1;
  }
  require<ValueError>(is_ordered, function,
                      "ways must be some of the letters Q, K, V, R, each once and in that order",
                      '\'' + ways + '\'');
}

void check_connections(const char* function, const MuddConfig& config) {
  check_ways(function, config.ways);
  require<ValueError>(config.hidden_round >= 0 && config.hidden_round <= kMaxSize, function,
                      "hidden_round must be an integer from 0 to " + std::to_string(kMaxSize),
                      std::to_string(config.hidden_round));
  check_count(function, "last_hidden_expand", config.last_hidden_expand);
  check_count(function, "dilation", config.dilation);
  check_count(function, "period", config.period);
  check_count(function, "num_streams", config.num_streams);
  if (config.window) {
    check_count(function, "window", *config.window);
    require<ValueError>(config.dilation == 1, function, "window needs a dilation of 1",
                        std::to_string(config.dilation));
  }
}

// How many numbers sources_of() has.
std::int64_t num_sources(const MuddConfig& config, std::int64_t layer) {
  const std::int64_t newest = layer + 1;
  if (!aggregate_after(config, layer)) {
    return 0;
  }
  return config.window ? std::min(newest, *config.window) + 1 : newest / config.dilation + 1;
}

std::int64_t num_ways(const MuddConfig& config, std::int64_t layer) {
  return static_cast<std::int64_t>(ways_of(config, layer).size());
}

// Of connections; the counts are below 2^31, but not their products.
double connection_parameters(const MuddConfig& config) {
  const auto width = static_cast<double>(config.d_model);
  const auto streams = static_cast<double>(config.num_streams);
  const auto heads = static_cast<double>(num_kv_heads_of(config));
  double total = 0.0;
  for (std::int64_t layer = 0; layer < config.num_layers; ++layer) {
    const auto weights = static_cast<double>(num_ways(config, layer) * num_sources(config, layer));
    total += weights + static_cast<double>(hidden_size(config, layer)) * (width + weights);
    if (config.variant == Variant::kHyperConnections) {
      total += 2.0 * (streams + 2.0) * (width + streams);
    } else if (config.variant == Variant::kLime) {
      total += static_cast<double>(layer + 1) * heads * heads;
    }
  }
  return total;
}

void check_total(const char* function, const MuddConfig& config) {
  const auto width = static_cast<double>(config.d_model);
  const double heads =
      static_cast<double>(config.num_heads) * static_cast<double>(head_dim_of(config));
  const double block = 4.0 * heads * width + 4.5 * width * static_cast<double>(config.d_ff);
  const double total = 2.0 * width * static_cast<double>(config.vocab_size) +
                       block * static_cast<double>(config.num_layers) +
                       connection_parameters(config);
  require<ValueError>(total <= kMaxParameters, function,
                      "vocab_size, num_layers, d_model, d_ff and the connections' options must "
                      "make at most 1e13 parameters",
                      std::to_string(total));
}

std::vector<std::int64_t> widths_of(const char* function, std::int64_t d_ff,
                                    std::int64_t num_layers, std::int64_t round_to) {
  std::vector<std::int64_t> widths;
  for (std::int64_t l = 0; l < num_layers; ++l) {
    // The operations and their order decide ties, so they are those of the published code.
    const double factor =
        num_layers == 1 ? 1.0 : static_cast<double>(l) / static_cast<double>(num_layers - 1) + 0.5;
    const double steps = static_cast<double>(d_ff) * factor / static_cast<double>(round_to);
    widths.push_back(static_cast<std::int64_t>(std::nearbyint(steps)) * round_to);
    require<ValueError>(widths.back() > 0, function,
                        "d_ff must be so large that no width rounds to 0 (layer " +
                            std::to_string(l) + ", rounded to " + std::to_string(round_to) + ')',
                        std::to_string(d_ff));
  }
  return widths;
}

bool is_last(const MuddConfig& config, std::int64_t layer) {
  return layer + 1 == config.num_layers;
}

}  // namespace

void check(const MuddConfig& config, const char* function) {
  check_count(function, "vocab_size", config.vocab_size);
  check_count(function, "num_layers", config.num_layers, kMaxLayers);
  check_count(function, "d_model", config.d_model);
  check_count(function, "d_ff", config.d_ff);
  check_heads(function, config);
  check_positive(function, "norm_eps", config.norm_eps);
  check_positive(function, "rope_base", config.rope_base);
  check_count(function, "max_positions", config.max_positions);
  check_connections(function, config);
  check_count(function, "ffn_round", config.ffn_round);
  check_total(function, config);
  if (has_ffn_reallocation(config)) {
    widths_of(function, config.d_ff, config.num_layers, config.ffn_round);
  }
}

bool is_multiway(Variant variant) {
  return variant == Variant::kMudd || variant == Variant::kMultiwayStatic ||
         variant == Variant::kMultiwayDynamic;
}

bool is_dynamic(Variant variant) {
  return variant == Variant::kMudd || variant == Variant::kDynamic ||
         variant == Variant::kMultiwayDynamic;
}

bool is_dense(Variant variant) {
  return is_multiway(variant) || is_dynamic(variant) || variant == Variant::kStatic;
}

bool has_way_norms(const MuddConfig& config, std::int64_t layer) {
  return is_multiway(config.variant) && layer > 0;
}

bool aggregate_after(const MuddConfig& config, std::int64_t layer) {
  return !ways_of(config, layer).empty();
}

std::vector<std::int64_t> sources_of(const MuddConfig& config, std::int64_t layer) {
  std::vector<std::int64_t> sources;
  if (!aggregate_after(config, layer)) {
    return sources;
  }
  const std::int64_t newest = layer + 1;
  std::int64_t first = newest % config.dilation;
  if (config.window) {
    sources.push_back(0);
    first = std::max<std::int64_t>(1, newest - *config.window + 1);
  }
  for (std::int64_t j = first; j <= newest; j += config.dilation) {
    sources.push_back(j);
  }
  return sources;
}

std::string ways_of(const MuddConfig& config, std::int64_t layer) {
  if (!is_dense(config.variant) || (layer + 1) % config.period != 0) {
    return "";
  }
  if (!is_multiway(config.variant)) {
    return "R";
  }
  if (!is_last(config, layer)) {
    return config.ways;
  }
  return config.ways.find('R') == std::string::npos ? "" : "R";
}

std::int64_t hidden_size(const MuddConfig& config, std::int64_t layer) {
  if (!is_dynamic(config.variant) || !aggregate_after(config, layer)) {
    return 0;
  }
  auto size =
      static_cast<std::int64_t>(ways_of(config, layer).size() * sources_of(config, layer).size());
  if (is_last(config, layer)) {
    size *= config.last_hidden_expand;
  }
  const std::int64_t round = config.hidden_round;
  return round == 0 ? size : (size / round + 1) * round;
}

std::vector<std::int64_t> reallocated_ffn_dims(std::int64_t d_ff, std::int64_t num_layers,
                                               std::int64_t round_to) {
  constexpr char kName[] = "reallocated_ffn_dims";
  check_count(kName, "d_ff", d_ff);
  check_count(kName, "num_layers", num_layers, kMaxLayers);
  check_count(kName, "round_to", round_to);
  return widths_of(kName, d_ff, num_layers, round_to);
}

std::vector<std::int64_t> ffn_dims_of(const MuddConfig& config) {
  return has_ffn_reallocation(config)
             ? widths_of(kModel, config.d_ff, config.num_layers, config.ffn_round)
             : std::vector<std::int64_t>();
}

bool has_ffn_reallocation(const MuddConfig& config) {
  return config.ffn_reallocation.value_or(config.variant == Variant::kMudd);
}

std::int64_t num_kv_heads_of(const MuddConfig& config) {
  return config.num_kv_heads == 0 ? config.num_heads : config.num_kv_heads;
}

std::int64_t head_dim_of(const MuddConfig& config) {
  return config.head_dim == 0 ? config.d_model / config.num_heads : config.head_dim;
}

std::int64_t rotary_dim_of(const MuddConfig& config) {
  const double own = config.parallel_block ? kPythiaRotary : 1.0;
  const double part = config.rotary_pct == 0.0 ? own : config.rotary_pct;
  const auto lanes = static_cast<std::int64_t>(static_cast<double>(head_dim_of(config)) * part);
  return std::max<std::int64_t>(2, lanes - lanes % 2);
}

}  // namespace paperlab::mudd
