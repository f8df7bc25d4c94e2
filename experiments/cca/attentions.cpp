#include "experiments/cca/attentions.h"

#include <memory>
#include <utility>

#include "paperlab/cca/baselines.h"
#include "paperlab/cca/decoder_attention.h"
#include "paperlab/cca/partition.h"
#include "paperlab/core/error.h"

namespace paperlab::experiments::cca {

namespace lib = paperlab::cca;

namespace {

constexpr char kWhat[] = "cca";

// Forms that give positions anew take queries and keys that are not rotated.
class Baseline final : public nn::Attention {
 public:
  Baseline(Method method, double rope_base) : method_(std::move(method)), rope_base_(rope_base) {}

  at::Tensor forward(const nn::AttentionInput& input, nn::LayerCache* cache) const override {
    require<ValueError>(cache == nullptr && !input.key_start.defined(), kWhat,
                        "whole sequences without padding", "others");
    if (method_.form == Form::kWindow) {
      nn::AttentionInput within = input;
      within.window = method_.window;
      return full_.forward(within, nullptr);
    }
    const at::Tensor query = input.query.transpose(1, 2);
    const at::Tensor key = input.key.transpose(1, 2);
    const at::Tensor value = input.value.transpose(1, 2);
    return attend(query, key, value).transpose(1, 2);
  }

  std::unique_ptr<nn::LayerCache> new_cache(const nn::CacheShape&) const override {
    throw ValueError("cca: this attention has no cache");
  }

 private:
  at::Tensor attend(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value) const {
    if (method_.form == Form::kSinks) {
      const lib::baselines::StreamingLlmOptions options{
          .sinks = method_.first, .recent = method_.window - 1, .rope_base = rope_base_};
      return lib::baselines::streaming_llm(query, key, value, options).out;
    }
    const lib::baselines::LmInfiniteOptions options{.global_tokens = method_.first,
                                                    .local = method_.window,
                                                    .limit = method_.window,
                                                    .rope_base = rope_base_};
    return lib::baselines::lm_infinite(query, key, value, options).out;
  }

  Method method_;
  double rope_base_;
  nn::FullAttention full_;
};

}  // namespace

Method full_method() { return {.name = "full"}; }

Method window_method(std::int64_t window) {
  return {.name = "window " + std::to_string(window), .form = Form::kWindow, .window = window};
}

Method sinks_method(std::int64_t sinks, std::int64_t budget) {
  return {.name = "StreamingLLM " + std::to_string(sinks) + " + " + std::to_string(budget - sinks),
          .form = Form::kSinks,
          .first = sinks,
          .window = budget - sinks};
}

Method lm_infinite_method(std::int64_t global_tokens, std::int64_t budget) {
  return {.name = "LM-Infinite " + std::to_string(global_tokens) + " + " +
                  std::to_string(budget - global_tokens),
          .form = Form::kLmInfinite,
          .first = global_tokens,
          .window = budget - global_tokens};
}

Method core_method(const std::string& name, std::int64_t group_size, std::int64_t window,
                   lib::Pooling pooling, std::int64_t keep_first) {
  Method method{.name = name, .form = Form::kCore};
  method.core.group_size = group_size;
  method.core.window = window;
  method.core.pooling = pooling;
  method.core.keep_first = keep_first;
  return method;
}

std::int64_t keys_of_last(std::int64_t length, const lib::Options& options) {
  const std::int64_t visible = lib::num_visible(length, options);
  return length - visible * (options.group_size - 1);
}

void use(nn::Decoder& decoder, const Method& method) {
  lib::remove(decoder);
  std::shared_ptr<const nn::Attention> attention = std::make_shared<nn::FullAttention>();
  if (method.form != Form::kFull && method.form != Form::kCore) {
    attention = std::make_shared<Baseline>(method, decoder.config().rope.base);
  }
  for (std::int64_t layer = 0; layer < decoder.config().num_layers; ++layer) {
    decoder.block(layer).attention = attention;
  }
  if (method.form == Form::kCore) {
    lib::apply(decoder, method.core);
  }
}

}  // namespace paperlab::experiments::cca
