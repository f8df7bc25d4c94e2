#include "paperlab/mudd/published.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <iterator>

#include "paperlab/core/error.h"
#include "paperlab/nn/hf_settings.h"

namespace paperlab::mudd {
namespace {

using nn::Settings;

constexpr char kFormer[] = "muddformer";
constexpr char kPythia[] = "muddpythia";
constexpr std::int64_t kRound = 64;  // round64
constexpr std::int64_t kExpand = 4;  // expand_last
constexpr std::int64_t kFfnRound = 128;
constexpr std::int64_t kStreams = 4;
constexpr std::int64_t kMaxLayers = 10'000;
constexpr double kPythiaRotary = 0.25;

template <class E>
struct Named {
  const char* name;
  E value;
};

// Variants that the published keys do not know.
constexpr Named<Variant> kVariants[] = {{"hyper_connections", Variant::kHyperConnections},
                                        {"lime", Variant::kLime}};
constexpr Named<PrePostNorm> kNorms[] = {{"eq10", PrePostNorm::kEq10},
                                         {"later_revision", PrePostNorm::kLaterRevision}};
constexpr Named<bool> kGelus[] = {{"exact", false}, {"tanh", true}};

template <class E, std::size_t N>
E read_name(Settings& settings, const char* key, const Named<E> (&names)[N], E absent) {
  if (settings.find_value(key) == nullptr) {
    return absent;
  }
  const std::string text = settings.text(key, "");
  std::string known;
  for (const Named<E>& name : names) {
    if (text == name.name) {
      return name.value;
    }
    known += (known.empty() ? "" : ", ") + std::string(name.name);
  }
  settings.refuse(key, "one of " + known);
}

template <class E, std::size_t N>
const char* name_of(const Named<E> (&names)[N], E value) {
  const auto* found = std::find_if(std::begin(names), std::end(names),
                                   [&](const auto& n) { return n.value == value; });
  return found == std::end(names) ? nullptr : found->name;
}

bool read_type(Settings& settings) {
  const Json* value = settings.find("model_type");
  const bool is_pythia = value != nullptr && *value == kPythia;
  if (!is_pythia && (value == nullptr || *value != kFormer)) {
    settings.refuse("model_type", std::string(kFormer) + " or " + kPythia);
  }
  const char* architecture = is_pythia ? "MUDDPythia" : "MUDDFormer";
  const Json* list = settings.find_value("architectures");
  const bool is_absent = list == nullptr || (list->is_array() && list->empty());
  if (!is_absent && (!list->is_array() || list->front() != architecture)) {
    settings.refuse("architectures", std::string("[\"") + architecture + "\"]");
  }
  return is_pythia;
}

// A null counts as absent.
std::int64_t size_or(Settings& settings, const char* key, std::int64_t absent) {
  return settings.optional_size(key).value_or(absent);
}

std::int64_t default_ffn(const MuddConfig& config) {
  constexpr std::int64_t kMultiple = 256;
  if (config.parallel_block) {
    return 4 * config.d_model;
  }
  return (8 * config.d_model / 3 + kMultiple - 1) / kMultiple * kMultiple;
}

void read_heads(Settings& settings, MuddConfig& config) {
  const Json* local = settings.find_value("n_local_heads");
  if (local != nullptr && *local != -1) {
    config.num_kv_heads = settings.size("n_local_heads", 0);
    if (config.num_heads % config.num_kv_heads != 0) {
      settings.refuse("n_local_heads",
                      "-1 or a divisor of n_head (" + std::to_string(config.num_heads) + ')');
    }
  }
  config.head_dim = size_or(settings, "head_dim", 0);
  if (config.head_dim == 0 && config.d_model % config.num_heads != 0) {
    settings.refuse("dim", "a multiple of n_head (" + std::to_string(config.num_heads) +
                               ") where head_dim is absent");
  }
  if (head_dim_of(config) % 2 != 0) {
    settings.refuse(config.head_dim == 0 ? "dim" : "head_dim",
                    "such that heads have an even width");
  }
}

void read_sizes(Settings& settings, MuddConfig& config) {
  config.vocab_size = size_or(settings, "vocab_size", 50432);
  config.num_layers = settings.size("n_layer", 32, kMaxLayers);
  config.d_model = settings.size("dim", 2560);
  config.num_heads = settings.size("n_head", 32);
  config.max_positions = settings.size("block_size", 2048);
  config.d_ff = size_or(settings, "intermediate_size", default_ffn(config));
  read_heads(settings, config);
}

// How much of a head is rotated, with what else the block is made of.
void read_block(Settings& settings, MuddConfig& config) {
  const bool is_pythia = config.parallel_block;
  config.norm_eps = settings.number("norm_eps", is_pythia ? 1e-5 : 1e-6, nn::kPositive);
  config.rope_base = settings.number("rope_base", 10000.0, nn::kPositive);
  config.has_qk_norm = settings.flag("use_qk_norm", false);
  config.rotary_pct = settings.number("rotary_pct", is_pythia ? kPythiaRotary : 1.0, nn::kPositive);
  if (config.rotary_pct > 1.0 ||
      rotary_dim_of(config) !=
          static_cast<std::int64_t>(static_cast<double>(head_dim_of(config)) * config.rotary_pct)) {
    settings.refuse("rotary_pct", "above 0, at most 1, such that an even number of the " +
                                      std::to_string(head_dim_of(config)) +
                                      " lanes of a head are rotated");
  }
  if (!is_pythia) {
    settings.only("use_linear_bias", false);
    settings.only("use_parallel_residual", false);
    return;
  }
  config.has_linear_bias = settings.flag("use_linear_bias", true);
  config.has_parallel_residual = settings.flag("use_parallel_residual", true);
}

std::string read_ways(Settings& settings) {
  constexpr std::string_view kWays = "qkvr";
  const std::string text = settings.text("dense_type", std::string(kWays));
  std::string ways;
  std::size_t next = 0;
  bool is_known = !text.empty();
  for (const char letter : text) {
    const std::size_t at = kWays.find(letter, next);
    is_known = is_known && at != std::string_view::npos;
    next = at + 1;
    ways += is_known ? "QKVR"[at] : '?';
  }
  if (!is_known && text != "l") {
    settings.refuse("dense_type", "l, or some of the letters qkvr, in that order");
  }
  return is_known ? ways : "";
}

// The variant; FFN widths grow with depth unless a key of ours says no.
void read_variant(Settings& settings, MuddConfig& config) {
  const bool is_dense_model = settings.flag("dense", true);
  const bool has_generator = settings.flag("dynamic_dense", true);
  const std::string ways = read_ways(settings);
  config.ffn_reallocation = settings.flag("paperlab_ffn_reallocation", true);
  const Variant other = read_name(settings, "paperlab_variant", kVariants, Variant::kBase);
  if (!is_dense_model) {
    config.variant = other;
  } else if (other != Variant::kBase) {
    settings.refuse("paperlab_variant", "absent where dense is true");
  } else if (ways.empty()) {
    config.variant = has_generator ? Variant::kDynamic : Variant::kStatic;
  } else if (has_generator) {
    config.variant = *config.ffn_reallocation ? Variant::kMudd : Variant::kMultiwayDynamic;
  } else {
    config.variant = Variant::kMultiwayStatic;
  }
  config.ways = ways.empty() ? "QKVR" : ways;
  const bool has_way_norm = is_multiway(config.variant);
  if (settings.flag("sepln", has_way_norm) != has_way_norm) {
    settings.refuse("sepln", has_way_norm ? "true where dense_type has several ways"
                                          : "false where dense is, or dense_type is l");
  }
}

void read_generators(Settings& settings, MuddConfig& config) {
  config.last_hidden_expand = settings.flag("expand_last", false) ? kExpand : 1;
  config.hidden_round = settings.flag("round64", false) ? kRound : 0;
  config.last_hidden_expand =
      size_or(settings, "paperlab_last_hidden_expand", config.last_hidden_expand);
  config.hidden_round = size_or(settings, "paperlab_hidden_round", config.hidden_round);
  config.has_tanh_gelu = read_name(settings, "paperlab_gelu", kGelus, false);
}

// Options that the paper has and the released code has not.
void read_paper_options(Settings& settings, MuddConfig& config) {
  config.ffn_round = size_or(settings, "paperlab_ffn_round", kFfnRound);
  config.dilation = size_or(settings, "paperlab_dilation", 1);
  config.period = size_or(settings, "paperlab_period", 1);
  config.window = settings.optional_size("paperlab_window");
  config.num_streams = size_or(settings, "paperlab_num_streams", kStreams);
  config.pre_post_norm = read_name(settings, "paperlab_pre_post_norm", kNorms, PrePostNorm::kNone);
}

void check_widths(const Settings& settings, const MuddConfig& config) {
  try {
    ffn_dims_of(config);
  } catch (const ValueError&) {
    settings.refuse("intermediate_size",
                    "so large that no width, of 1/2 to 3/2 of it, rounds to 0 multiples of " +
                        std::to_string(config.ffn_round));
  }
}

std::optional<std::int64_t> read_id(Settings& settings, const char* key) {
  const Json* value = settings.find_value(key);
  if (value == nullptr) {
    return std::nullopt;
  }
  const std::optional<std::int64_t> id = nn::integer(*value);
  if (!id || *id < -1 || *id > nn::kMaxSize) {
    settings.refuse(key, "a token id, or null");
  }
  return *id < 0 ? std::nullopt : id;  // some files write -1 for none
}

void read_harmless(Settings& settings) {
  for (const char* key :
       {"stack_hidden", "use_layer_cache", "is_training", "use_gradient_checkpointing"}) {
    settings.flag(key, false);
  }
  nn::allow_hf_harmless(settings);
}

// Options that stand together; the message names the setting where one alone is wrong.
void check_whole(Settings& settings, const MuddConfig& config) {
  try {
    check(config);
  } catch (const ValueError& error) {
    throw ValueError(settings.source() + ": " + error.what());
  }
}

void write_sizes(const MuddConfig& config, Json& json) {
  json["vocab_size"] = config.vocab_size;
  json["n_layer"] = config.num_layers;
  json["dim"] = config.d_model;
  json["n_head"] = config.num_heads;
  json["n_local_heads"] = num_kv_heads_of(config);
  json["head_dim"] = head_dim_of(config);
  json["intermediate_size"] = config.d_ff;
  json["block_size"] = config.max_positions;
  json["norm_eps"] = json_number(config.norm_eps);
  json["rope_base"] = json_number(config.rope_base);
  json["use_qk_norm"] = config.has_qk_norm;
}

// A part of which the reader's rotary_dim_of() makes the same number of lanes.
double rotary_part(const MuddConfig& config) {
  const auto lanes = static_cast<double>(rotary_dim_of(config));
  const auto width = static_cast<double>(head_dim_of(config));
  double part = lanes / width;
  while (part * width < lanes) {
    part = std::nextafter(part, 1.0);
  }
  return part;
}

void write_block(const MuddConfig& config, Json& json) {
  const double rotary = rotary_part(config);
  if (config.parallel_block) {
    json["use_linear_bias"] = config.has_linear_bias;
    json["use_parallel_residual"] = config.has_parallel_residual;
  }
  if (config.parallel_block || rotary != 1.0) {
    json["rotary_pct"] = json_number(rotary);
  }
}

// Options that another number of the file does not already say.
void write_own(const MuddConfig& config, Json& json) {
  const auto write = [&json](const char* key, std::int64_t value, bool is_needed) {
    if (is_needed) {
      json[key] = value;
    }
  };
  if (!has_ffn_reallocation(config)) {
    json["paperlab_ffn_reallocation"] = false;
  }
  write("paperlab_ffn_round", config.ffn_round, config.ffn_round != kFfnRound);
  write("paperlab_dilation", config.dilation, config.dilation != 1);
  write("paperlab_period", config.period, config.period != 1);
  write("paperlab_window", config.window.value_or(0), config.window.has_value());
  write("paperlab_num_streams", config.num_streams, config.num_streams != kStreams);
  write("paperlab_last_hidden_expand", config.last_hidden_expand,
        config.last_hidden_expand != 1 && config.last_hidden_expand != kExpand);
  write("paperlab_hidden_round", config.hidden_round,
        config.hidden_round != 0 && config.hidden_round != kRound);
  if (config.has_tanh_gelu) {
    json["paperlab_gelu"] = "tanh";
  }
  if (const char* norm = name_of(kNorms, config.pre_post_norm)) {
    json["paperlab_pre_post_norm"] = norm;
  }
  if (const char* variant = name_of(kVariants, config.variant)) {
    json["paperlab_variant"] = variant;
  }
}

void write_connections(const MuddConfig& config, Json& json) {
  std::string ways = "l";
  if (is_multiway(config.variant) || !is_dense(config.variant)) {
    ways = config.ways;
    std::transform(ways.begin(), ways.end(), ways.begin(),
                   [](char way) { return static_cast<char>(way - 'A' + 'a'); });
  }
  json["dense"] = is_dense(config.variant);
  json["dynamic_dense"] = is_dynamic(config.variant);
  json["dense_type"] = ways;
  json["sepln"] = is_multiway(config.variant);
  json["expand_last"] = config.last_hidden_expand != 1;
  json["round64"] = config.hidden_round != 0;
}

Json id_json(std::optional<std::int64_t> id) { return id ? Json(*id) : Json(); }

}  // namespace

PublishedModel read_published_config(const std::string& source, const Json& config) {
  Settings settings(source, config);
  PublishedModel model;
  MuddConfig& result = model.config;
  result.parallel_block = read_type(settings);
  read_sizes(settings, result);
  read_block(settings, result);
  read_variant(settings, result);
  read_generators(settings, result);
  read_paper_options(settings, result);
  check_widths(settings, result);
  result.has_tied_head = settings.flag("tie_word_embeddings", false);
  result.bos_token_id = read_id(settings, "bos_token_id");
  result.eos_token_id = read_id(settings, "eos_token_id");
  result.pad_token_id = read_id(settings, "pad_token_id");
  model.dtype = nn::read_hf_dtype(settings);
  read_harmless(settings);
  settings.refuse_others(std::string("the model type '") +
                         (result.parallel_block ? kPythia : kFormer) + "'");
  check_whole(settings, result);
  return model;
}

Json published_config(const MuddConfig& config, const std::string& dtype) {
  check(config);
  Json json = Json::object();
  json["model_type"] = config.parallel_block ? kPythia : kFormer;
  json["architectures"] = Json::array({config.parallel_block ? "MUDDPythia" : "MUDDFormer"});
  write_sizes(config, json);
  write_block(config, json);
  write_connections(config, json);
  write_own(config, json);
  json["tie_word_embeddings"] = config.has_tied_head;
  json["bos_token_id"] = id_json(config.bos_token_id);
  json["eos_token_id"] = id_json(config.eos_token_id);
  if (config.pad_token_id) {
    json["pad_token_id"] = *config.pad_token_id;
  }
  json["torch_dtype"] = dtype;
  json["transformers_version"] = "4.35.0";  // that the released code is for
  json["stack_hidden"] = false;
  json["use_layer_cache"] = true;
  json["is_training"] = false;
  json["use_gradient_checkpointing"] = false;
  return json;
}

bool is_published_buffer(std::string_view name) {
  constexpr std::string_view kLayers = "layers.";
  if (name == "layer_cache.layer_cache") {
    return true;
  }
  if (!name.starts_with(kLayers)) {
    return false;
  }
  name.remove_prefix(kLayers.size());
  const std::size_t end = name.find_first_not_of("0123456789");
  if (end == 0 || end == std::string_view::npos) {
    return false;
  }
  name.remove_prefix(end);
  return name == ".attention.kv_cache.k_cache" || name == ".attention.kv_cache.v_cache";
}

}  // namespace paperlab::mudd
