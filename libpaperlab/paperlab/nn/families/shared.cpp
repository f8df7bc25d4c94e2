#include <algorithm>
#include <string>

#include "paperlab/nn/families/family_internal.h"

namespace paperlab::nn {
namespace {

constexpr std::int64_t kMaxLayers = 10'000;
// Above any model; their bytes fit into the addresses of a process, and sums of sizes into 64 bits.
constexpr double kMaxParameters = 1e13;
constexpr std::int64_t kDefaultWindow = 4096;  // of all types that have one

std::int64_t derived_head_dim(const Settings& settings, const SizeKeys& keys,
                              const DecoderConfig& config) {
  if (config.d_model % config.num_heads != 0) {
    settings.refuse(keys.hidden, std::string("a multiple of ") + keys.heads + " (" +
                                     std::to_string(config.num_heads) + ")");
  }
  return config.d_model / config.num_heads;
}

void read_counts(Settings& settings, const ModelType& type, const SizeKeys& keys,
                 DecoderConfig& config) {
  config.vocab_size = settings.size("vocab_size", type.vocab_size);
  config.d_model = settings.size(keys.hidden, type.hidden_size);
  config.d_ff = type.intermediate_size == 0
                    ? settings.optional_size(keys.ffn).value_or(4 * config.d_model)
                    : settings.size(keys.ffn, type.intermediate_size);
  config.num_layers = settings.size(keys.layers, type.num_layers, kMaxLayers);
  config.num_heads = settings.size(keys.heads, type.num_heads);
  config.num_kv_heads = config.num_heads;
}

void read_key_heads(Settings& settings, const ModelType& type, DecoderConfig& config) {
  const bool is_null = settings.find("num_key_value_heads") != nullptr &&
                       settings.find_value("num_key_value_heads") == nullptr;
  if (!is_null) {
    config.num_kv_heads = settings.size("num_key_value_heads",
                                        type.num_kv_heads ? type.num_kv_heads : config.num_heads);
  }
  if (config.num_heads % config.num_kv_heads != 0) {
    const bool is_given = settings.find("num_key_value_heads") != nullptr;
    settings.refuse("num_key_value_heads", (is_given ? "a" : "given as a") +
                                               std::string(" divisor of num_attention_heads (") +
                                               std::to_string(config.num_heads) + "), unlike " +
                                               (is_given ? "" : "its default ") +
                                               std::to_string(config.num_kv_heads));
  }
}

void check_parameters(const Settings& settings, const SizeKeys& keys, const DecoderConfig& config) {
  const auto width = static_cast<double>(config.d_model);
  const double heads = static_cast<double>(config.num_heads) * static_cast<double>(config.head_dim);
  const double block = 4.0 * heads * width + 3.0 * width * static_cast<double>(config.d_ff);
  const double rows =
      2.0 * static_cast<double>(config.vocab_size) + static_cast<double>(config.max_positions);
  if (rows * width + block * static_cast<double>(config.num_layers) > kMaxParameters) {
    settings.refuse(keys.hidden, "part of a model of at most 1e13 parameters");
  }
}

}  // namespace

void read_sizes(Settings& settings, const ModelType& type, const SizeKeys& keys,
                DecoderConfig& config) {
  read_counts(settings, type, keys, config);
  config.head_dim = derived_head_dim(settings, keys, config);
  config.max_positions = settings.size(keys.positions, type.max_positions);
  check_parameters(settings, keys, config);
}

void read_grouped_sizes(Settings& settings, const ModelType& type, DecoderConfig& config) {
  const SizeKeys keys;
  read_counts(settings, type, keys, config);
  read_key_heads(settings, type, config);
  if (type.head_dim != 0) {
    config.head_dim = settings.size("head_dim", type.head_dim);
  } else {
    const std::optional<std::int64_t> head_dim = settings.optional_size("head_dim");
    config.head_dim = head_dim ? *head_dim : derived_head_dim(settings, keys, config);
  }
  config.max_positions = settings.size(keys.positions, type.max_positions);
  check_parameters(settings, keys, config);
}

void read_rope(Settings& settings, const RopeForm& form, DecoderConfig& config) {
  config.rope = read_hf_rope(settings, form, config.head_dim, config.max_positions);
  config.max_positions = stretched_positions(settings, config.rope);
}

std::int64_t read_window(Settings& settings) {
  const bool is_absent = settings.find("sliding_window") == nullptr;
  return is_absent ? kDefaultWindow : settings.optional_size("sliding_window").value_or(0);
}

std::vector<std::int64_t> read_windows(Settings& settings, std::int64_t num_layers,
                                       std::int64_t window, const char* requirement,
                                       const std::function<bool(std::int64_t layer)>& has_window) {
  std::vector<std::int64_t> windows(static_cast<std::size_t>(num_layers), 0);
  const Json* types = settings.find_value("layer_types");
  if (types != nullptr && (!types->is_array() || types->size() != windows.size())) {
    settings.refuse("layer_types", "a list of " + std::to_string(num_layers) + " names");
  }
  for (std::size_t i = 0; i < windows.size(); ++i) {
    bool is_windowed = has_window(static_cast<std::int64_t>(i));
    if (types != nullptr) {
      is_windowed = (*types)[i] == "sliding_attention";
      if (!is_windowed && (*types)[i] != "full_attention") {
        settings.refuse("layer_types", "a list of full_attention and sliding_attention");
      }
      if (is_windowed && window == 0) {
        settings.refuse("layer_types", requirement);
      }
    }
    windows[i] = is_windowed ? window : 0;
  }
  const bool has_any = std::any_of(windows.begin(), windows.end(), [](auto w) { return w > 0; });
  return has_any ? windows : std::vector<std::int64_t>();
}

}  // namespace paperlab::nn
