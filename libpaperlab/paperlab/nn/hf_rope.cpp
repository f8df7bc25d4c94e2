#include <algorithm>
#include <array>
#include <cmath>
#include <string_view>

#include "paperlab/nn/hf_settings.h"

namespace paperlab::nn {
namespace {

struct NamedScaling {
  const char* name;
  RopeScaling scaling;
};
constexpr std::array kScalings = {
    NamedScaling{"default", RopeScaling::kNone}, NamedScaling{"linear", RopeScaling::kLinear},
    NamedScaling{"dynamic", RopeScaling::kDynamic}, NamedScaling{"llama3", RopeScaling::kLlama3},
    NamedScaling{"yarn", RopeScaling::kYarn}};

// transformers 4 has the key `type` in old files.
RopeScaling read_scaling(Settings& rope) {
  const bool has_type = rope.find_value("type") != nullptr;
  const bool has_rope_type = rope.find_value("rope_type") != nullptr;
  if (!has_type && !has_rope_type) {
    return RopeScaling::kNone;
  }
  const char* key = has_rope_type ? "rope_type" : "type";
  const std::string name = rope.text(key, "");
  std::string names;
  for (const NamedScaling& known : kScalings) {
    if (name == known.name) {
      return known.scaling;
    }
    names += (names.empty() ? "" : ", ") + std::string(known.name);
  }
  rope.refuse(key, "one of " + names);
}

// The part of rope_parameters that counts, null if there is none.
const Json* section_of(Settings& settings, const Json* parameters, const RopeForm& form) {
  constexpr const char* kForm = "an object of objects full_attention and sliding_attention";
  for (const auto& [key, value] : parameters->items()) {
    if ((key != "full_attention" && key != "sliding_attention") ||
        !(value.is_object() || value.is_null())) {
      settings.refuse("rope_parameters", kForm);
    }
  }
  const auto found = parameters->find(form.section);
  return found == parameters->end() || found->empty() ? nullptr : &*found;
}

// The object that holds the parameters: `rope_parameters` (transformers 5) or `rope_scaling`.
const Json* parameters_object(Settings& settings, const RopeForm& form, std::string& key) {
  const auto filled = [&](const char* name) {
    const Json* value = settings.find_value(name);
    if (value != nullptr && !value->is_object()) {
      settings.refuse(name, "an object or null");
    }
    return value == nullptr || value->empty() ? nullptr : value;
  };
  const Json* old_form = form.has_scaling_key ? filled("rope_scaling") : nullptr;
  const Json* new_form = filled("rope_parameters");
  std::string new_key = "rope_parameters";
  if (form.section != nullptr && new_form != nullptr) {
    new_form = section_of(settings, new_form, form);
    new_key += std::string(".") + form.section;
  }
  if (old_form != nullptr && new_form != nullptr && *old_form != *new_form) {
    settings.refuse("rope_scaling", "absent or equal to " + new_key);
  }
  key = old_form != nullptr ? "rope_scaling" : new_key;
  return old_form != nullptr ? old_form : new_form;
}

// A number of the object, else of the file's own level, else `absent`.
double number_of_either(Settings& rope, const std::string& key, Settings& settings,
                        const std::string& outer_key, double absent, double min) {
  const std::optional<double> outer = settings.optional_number(outer_key, min);
  return rope.optional_number(key, min).value_or(outer.value_or(absent));
}

std::int64_t rotary_lanes(Settings& rope, Settings& settings, const RopeForm& form,
                          std::int64_t head_dim) {
  const char* key = "partial_rotary_factor";
  const bool is_partial = form.share_key != nullptr;
  const double share =
      number_of_either(rope, key, settings, is_partial ? form.share_key : key, form.share, 0.0);
  if (share > 1.0 || (!is_partial && share != 1.0)) {
    rope.refuse(key, is_partial ? "from 0 to 1" : "1 in a model of this type");
  }
  if (is_partial) {  // what transformers 4 wrote beside it
    settings.only(key, share);
  }
  const auto lanes = static_cast<std::int64_t>(static_cast<double>(head_dim) * share);
  if (lanes % 2 != 0) {
    settings.refuse(is_partial ? "hidden_size" : "head_dim",
                    "such that an even number of a head's lanes is rotated (here " +
                        std::to_string(lanes) + " of " + std::to_string(head_dim) + ")");
  }
  return lanes;
}

void read_factor(Settings& rope, RopeConfig& config) {
  const std::optional<double> factor = rope.optional_number("factor", kPositive);
  if (factor) {
    config.factor = *factor;
  } else if (config.scaling == RopeScaling::kYarn) {
    config.factor = static_cast<double>(config.max_positions) /
                    static_cast<double>(config.original_max_positions);
  } else {
    rope.refuse("factor", "a number > 0");
  }
}

void read_llama3(Settings& rope, RopeConfig& config) {
  const auto needed = [&](const char* key) {
    if (rope.find(key) == nullptr) {
      rope.refuse(key, "a number > 0");
    }
    return rope.number(key, 0.0, kPositive);
  };
  config.low_freq_factor = needed("low_freq_factor");
  config.high_freq_factor = needed("high_freq_factor");
  if (config.high_freq_factor <= config.low_freq_factor) {
    rope.refuse("high_freq_factor", "above low_freq_factor");
  }
}

// Zero stands for the default of beta and for no mscale.
void read_yarn(Settings& rope, RopeConfig& config) {
  const auto non_zero = [&](const char* key, double min) {
    const std::optional<double> value = rope.optional_number(key, min);
    return value.has_value() && *value == 0.0 ? std::nullopt : value;
  };
  config.beta_fast = non_zero("beta_fast", 0.0).value_or(config.beta_fast);
  config.beta_slow = non_zero("beta_slow", 0.0).value_or(config.beta_slow);
  config.attention_factor = rope.optional_number("attention_factor", kAny);
  config.mscale = non_zero("mscale", kAny);
  config.mscale_all_dim = non_zero("mscale_all_dim", kAny);
  config.truncate = rope.find_value("truncate") == nullptr || rope.flag("truncate", true);
  if (config.base <= 1.0) {
    rope.refuse("rope_theta", "above 1 with yarn");
  }
}

void read_scaled(Settings& rope, RopeConfig& config) {
  const bool has_original =
      config.scaling == RopeScaling::kLlama3 || config.scaling == RopeScaling::kYarn;
  if (has_original) {
    config.original_max_positions =
        rope.optional_size("original_max_position_embeddings").value_or(config.max_positions);
  }
  if (config.scaling != RopeScaling::kNone) {
    read_factor(rope, config);
  }
  if (config.scaling == RopeScaling::kLlama3) {
    read_llama3(rope, config);
  } else if (config.scaling == RopeScaling::kYarn) {
    read_yarn(rope, config);
  } else if (config.scaling == RopeScaling::kDynamic && config.rotary_dim == 2) {
    rope.refuse("rope_type", "another one where 2 lanes are rotated");  // base ^ (R / (R - 2))
  }
  // Those of another scaling change nothing.
  rope.allow(
      "factor original_max_position_embeddings low_freq_factor high_freq_factor beta_fast "
      "beta_slow "
      "attention_factor mscale mscale_all_dim truncate");
}

}  // namespace

RopeConfig read_hf_rope(Settings& settings, const RopeForm& form, std::int64_t head_dim,
                        std::int64_t max_position_embeddings) {
  std::string key;
  const Json none = Json::object();
  const Json* object = parameters_object(settings, form, key);
  Settings rope(settings.source(), object == nullptr ? none : *object, key);
  RopeConfig config;
  config.max_positions = max_position_embeddings;
  config.scaling = read_scaling(rope);
  config.base = number_of_either(rope, "rope_theta", settings, form.base_key, form.base, kPositive);
  if (form.share_key != nullptr) {
    settings.only("rope_theta", config.base);
  }
  config.rotary_dim = rotary_lanes(rope, settings, form, head_dim);
  read_scaled(rope, config);
  rope.refuse_others("rotary positions");
  return config;
}

std::int64_t stretched_positions(const Settings& settings, const RopeConfig& rope) {
  const bool is_whole =
      rope.scaling == RopeScaling::kLinear || rope.scaling == RopeScaling::kDynamic;
  const std::int64_t trained = is_whole ? rope.max_positions : rope.original_max_positions;
  const double stretched = std::floor(static_cast<double>(trained) * rope.factor);
  if (!(stretched <= static_cast<double>(kMaxSize))) {
    settings.refuse("max_position_embeddings",
                    "at most " + std::to_string(kMaxSize) + " after scaling by the rope's factor");
  }
  return std::max(static_cast<std::int64_t>(stretched), rope.max_positions);
}

}  // namespace paperlab::nn
