#include "paperlab/cca/decoder_attention.h"

#include <ATen/autocast_mode.h>

#include <string>
#include <utility>

#include "paperlab/cca/cache.h"
#include "paperlab/cca/rows.h"
#include "paperlab/core/error.h"

namespace paperlab::cca {
namespace {

constexpr char kAttention[] = "cca::DecoderAttention";

// Core entries and the last raw keys of one layer.
class CoreContextCache final : public nn::LayerCache {
 public:
  CoreContextCache(const Options& options, const nn::CacheShape& shape)
      : shape_(shape), cache_(options, /*is_revertible=*/true) {}

  // query [B, H, T, D], key and value [B, G, T, D] of the tokens from num_past on.
  at::Tensor attend(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                    const nn::AttentionInput& input) {
    const bool is_autocast = at::autocast::is_autocast_enabled(key.device().type());
    const bool is_dtype = is_autocast || key.scalar_type() == model_dtype();
    const bool is_alike = key.size(0) == shape_.batch_size && key.size(1) == shape_.num_kv_heads &&
                          key.size(3) == shape_.head_dim && is_dtype &&
                          key.device() == shape_.options.device();
    require<ValueError>(
        is_alike, kAttention,
        "cache must be of the model's batch size, key heads, head_dim, dtype and device",
        "another model's");
    require<ValueError>(input.num_past <= cache_.length(), kAttention,
                        "cache must hold " + std::to_string(input.num_past) + " tokens",
                        std::to_string(cache_.length()));
    if (input.num_past == 0) {
      cache_.reset();  // another batch may have other padding
    } else if (input.num_past < cache_.length()) {
      cache_.truncate(input.num_past);
    }
    const at::ScalarType dtype = cache_.length() > 0 ? cache_.dtype() : first_dtype(key);
    return cache_.prefill(query.to(dtype), key.to(dtype), value.to(dtype), input.key_start)
        .to(query.scalar_type());
  }

  std::int64_t num_bytes() const override { return cache_.num_bytes(); }
  const Options& options() const { return cache_.options(); }

 private:
  at::ScalarType model_dtype() const { return c10::typeMetaToScalarType(shape_.options.dtype()); }

  // Of a cache that is begun with such keys: as LibTorch's attention, in autocast's dtype where
  // that is on; float64 stays. Norms of heads give float32 there.
  static at::ScalarType first_dtype(const at::Tensor& key) {
    const c10::DeviceType device = key.device().type();
    const bool is_lowered =
        at::autocast::is_autocast_enabled(device) && key.scalar_type() != at::kDouble;
    return is_lowered ? at::autocast::get_autocast_dtype(device) : key.scalar_type();
  }

  nn::CacheShape shape_;
  KvCache cache_;
};

std::string text_of(const Options& options) {
  return "one of group_size " + std::to_string(options.group_size) + ", window " +
         std::to_string(options.window);
}

}  // namespace

DecoderAttention::DecoderAttention(const Options& options,
                                   std::shared_ptr<const nn::Attention> original)
    : options_(options), original_(std::move(original)) {
  validate(kAttention, options_);
  require<ValueError>(original_ != nullptr, kAttention, "an original attention", "null");
}

at::Tensor DecoderAttention::forward(const nn::AttentionInput& input, nn::LayerCache* cache) const {
  const std::int64_t length = input.num_past + input.query.size(1);
  require<ValueError>(input.window == 0 || input.window >= length, kAttention,
                      "a layer without a sliding window of its own",
                      "layer " + std::to_string(input.layer) + " with one of " +
                          std::to_string(input.window) + " tokens");
  const at::Tensor query = nn::rotated(input.query, input).transpose(1, 2);
  const at::Tensor key = nn::rotated(input.key, input).transpose(1, 2);
  const at::Tensor value = input.value.transpose(1, 2);
  if (cache == nullptr) {
    const Rows rows = {input.key_start, {}, {}};
    return attention_of_rows(query, key, value, options_, rows).transpose(1, 2);
  }
  auto* core = dynamic_cast<CoreContextCache*>(cache);
  require<ValueError>(core != nullptr, kAttention,
                      "cache must be one that core-context attention made", "another");
  require<ValueError>(core->options() == options_, kAttention,
                      "cache must be made after the last apply(), for " + text_of(options_),
                      text_of(core->options()));
  return core->attend(query, key, value, input).transpose(1, 2);
}

std::unique_ptr<nn::LayerCache> DecoderAttention::new_cache(const nn::CacheShape& shape) const {
  require<ValueError>(options_.boundary == Boundary::kExact, kAttention,
                      "the exact boundary where there is a cache",
                      "another: it looks ahead or counts tokens twice");
  return std::make_unique<CoreContextCache>(options_, shape);
}

void apply(nn::Decoder& decoder, const Options& options) {
  validate("apply", options);
  const nn::DecoderConfig& config = decoder.config();
  for (std::size_t layer = 0; layer < config.windows.size(); ++layer) {
    const std::int64_t window = config.windows[layer];
    require<ValueError>(
        window == 0 || window >= config.max_positions, "apply",
        "a model without sliding windows of its own",
        "layer " + std::to_string(layer) + " with one of " + std::to_string(window) + " tokens");
  }
  for (std::int64_t layer = 0; layer < config.num_layers; ++layer) {
    std::shared_ptr<const nn::Attention>& place = decoder.block(layer).attention;
    const auto* applied = dynamic_cast<const DecoderAttention*>(place.get());
    place = std::make_shared<DecoderAttention>(options,
                                               applied == nullptr ? place : applied->original());
  }
}

const Options* applied(nn::Decoder& decoder) {
  if (decoder.config().num_layers == 0) {
    return nullptr;
  }
  const auto* attention = dynamic_cast<const DecoderAttention*>(decoder.block(0).attention.get());
  return attention == nullptr ? nullptr : &attention->options();
}

void remove(nn::Decoder& decoder) {
  for (std::int64_t layer = 0; layer < decoder.config().num_layers; ++layer) {
    std::shared_ptr<const nn::Attention>& place = decoder.block(layer).attention;
    if (const auto* applied = dynamic_cast<const DecoderAttention*>(place.get())) {
      std::shared_ptr<const nn::Attention> original = applied->original();
      place = std::move(original);  // ends `applied`
    }
  }
}

}  // namespace paperlab::cca
