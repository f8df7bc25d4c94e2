#include <algorithm>
#include <array>
#include <string>

#include "paperlab/nn/families/encoder_family_internal.h"

namespace paperlab::nn {
namespace {

constexpr std::array<const EncoderType*, 5> kTypes = {&kBertType, &kRobertaType, &kDistilBertType,
                                                      &kDebertaV2Type, &kVitType};

}  // namespace

std::span<const EncoderType* const> encoder_types() { return kTypes; }

const EncoderType& type_of(EncoderFamily family) {
  return **std::find_if(kTypes.begin(), kTypes.end(),
                        [&](const EncoderType* type) { return type->family == family; });
}

std::int64_t read_positions(Settings& settings) {
  return settings.size("max_position_embeddings", 512);
}

std::optional<std::int64_t> read_padding(Settings& settings, std::int64_t absent,
                                         std::int64_t vocab_size) {
  const Json* value = settings.find("pad_token_id");
  if (value != nullptr && value->is_null()) {
    return std::nullopt;
  }
  const std::optional<std::int64_t> id = value == nullptr ? std::optional(absent) : integer(*value);
  if (!id || *id < 0 || *id >= vocab_size) {
    settings.refuse("pad_token_id",
                    "null or a token id below vocab_size (" + std::to_string(vocab_size) + ")");
  }
  return id;
}

std::int64_t read_count(Settings& settings, const char* key, std::int64_t absent) {
  const Json* value = settings.find(key);
  const std::int64_t count = value == nullptr ? absent : integer(*value).value_or(-1);
  if (count < 0 || count > kMaxSize) {
    settings.refuse(key, "an integer from 0 to " + std::to_string(kMaxSize));
  }
  return count;
}

}  // namespace paperlab::nn
