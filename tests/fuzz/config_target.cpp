#include <algorithm>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

#include "paperlab/core/error.h"
#include "paperlab/io/element_type.h"
#include "paperlab/mudd/layout.h"
#include "paperlab/mudd/published.h"
#include "paperlab/nn/encoder_hf_config.h"
#include "paperlab/nn/encoder_parameters.h"
#include "paperlab/nn/hf_config.h"
#include "tests/fuzz/targets.h"

namespace paperlab::io {
namespace {

constexpr int kMaxDepth = 64;  // as read_json()
constexpr std::int64_t kMaxNamedLayers = 20;

void must(bool holds) {
  if (!holds) {
    std::abort();
  }
}

Json parse(std::string_view text) {
  return Json::parse(text, [](int depth, Json::parse_event_t, const Json&) {
    if (depth > kMaxDepth) {
      throw ValueError("too deep");
    }
    return true;
  });
}

void check(const std::vector<nn::ParameterSpec>& specs) {
  for (const nn::ParameterSpec& spec : specs) {
    must(std::all_of(spec.shape.begin(), spec.shape.end(), [](auto n) { return n >= 1; }));
    must(tensor_bytes(ElementType::kF64, spec.shape).has_value());
  }
}

// What a decoder is built from.
void check(const nn::HfModel& model) {
  const nn::DecoderConfig& c = model.config;
  for (const std::int64_t size : {c.vocab_size, c.num_layers, c.d_model, c.num_heads,
                                  c.num_kv_heads, c.head_dim, c.d_ff, c.max_positions}) {
    must(size >= 1 && size <= 0x7fffffff);
  }
  must(c.num_heads % c.num_kv_heads == 0);
  must(c.rope.rotary_dim % 2 == 0 && c.rope.rotary_dim <= c.head_dim);
  must(c.rope.base > 0 && c.rope.factor > 0 && c.norm_eps >= 0);
  must(c.rope.max_positions <= c.max_positions);
  must(c.windows.empty() || static_cast<std::int64_t>(c.windows.size()) == c.num_layers);
  must(std::all_of(c.windows.begin(), c.windows.end(), [](auto w) { return w >= 0; }));
  if (c.num_layers <= kMaxNamedLayers) {
    check(nn::parameter_specs(c, model.family));
  }
}

void check_decoder(const Json& config) {
  check(nn::read_hf_config("fuzz/config.json", config));
  check(nn::read_hf_config("fuzz/config.json", config, &config));
}

void check_encoder(const Json& config) {
  const nn::EncoderConfig read = nn::read_hf_encoder_config("fuzz/config.json", config).config;
  if (read.block.num_layers <= kMaxNamedLayers) {
    check(nn::encoder_parameter_specs(read));
  }
}

// What is written describes the model that was read.
void check_mudd(const Json& config) {
  const mudd::MuddConfig read = mudd::read_published_config("fuzz/config.json", config).config;
  const Json written = mudd::published_config(read);
  const mudd::MuddConfig again = mudd::read_published_config("fuzz/config.json", written).config;
  must(mudd::published_config(again) == written);
  must(mudd::rotary_dim_of(again) == mudd::rotary_dim_of(read));
  if (read.num_layers <= kMaxNamedLayers) {
    check(mudd::parameter_specs(read));
  }
}

}  // namespace

void fuzz_config(const std::uint8_t* data, std::size_t num_bytes) {
  const std::string_view text(reinterpret_cast<const char*>(data), num_bytes);
  for (const auto read : {check_decoder, check_encoder, check_mudd}) {
    try {
      read(parse(text));
    } catch (const Json::exception&) {
      return;  // no JSON; read_json() says so in its own words
    } catch (const ValueError&) {
      continue;
    }
  }
}

}  // namespace paperlab::io
