#pragma once
// A small decoder and small encoders for the tests of training.

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>

#include <cstdint>

#include "paperlab/core/json.h"
#include "paperlab/nn/encoder_load.h"
#include "paperlab/nn/load.h"
#include "paperlab/train/batch.h"

namespace paperlab::train {

constexpr std::int64_t kVocabulary = 17;

inline nn::HfDecoder small_model(std::uint64_t seed = 1, at::ScalarType dtype = at::kFloat,
                                 const Json& changes = Json::object()) {
  Json config = {{"model_type", "llama"},        {"architectures", {"LlamaForCausalLM"}},
                 {"vocab_size", kVocabulary},    {"hidden_size", 8},
                 {"intermediate_size", 12},      {"num_hidden_layers", 1},
                 {"num_attention_heads", 2},     {"num_key_value_heads", 1},
                 {"max_position_embeddings", 9}, {"rms_norm_eps", 1e-6}};
  config.update(changes);
  nn::HfDecoder model = nn::new_decoder(config, nn::Init::kNormal, seed, dtype);
  for (const auto& parameter : model.decoder->parameters()) {
    parameter.value->requires_grad_();
  }
  return model;
}

// Rows that count upwards, from another token in each row and step.
inline at::Tensor counting(std::int64_t step, std::int64_t rows = 2, std::int64_t length = 6) {
  const at::Tensor start = at::arange(rows, at::kLong).mul_(5).add_(step).unsqueeze(1);
  return (start + at::arange(length + 1, at::kLong)).remainder(kVocabulary);
}

constexpr std::int64_t kLabels = 3;

inline nn::HfEncoder new_encoder(Json config, std::uint64_t seed, const Json& changes) {
  config.update({{"hidden_size", 8},
                 {"intermediate_size", 12},
                 {"num_hidden_layers", 1},
                 {"num_attention_heads", 2},
                 {"num_labels", kLabels},
                 {"initializer_range", 0.3}});
  config.update(changes);
  nn::HfEncoder model = nn::new_encoder(config, seed);
  for (const auto& parameter : model.encoder->parameters().list()) {
    parameter.value->requires_grad_();
  }
  return model;
}

inline nn::HfEncoder small_encoder(std::uint64_t seed = 1, const Json& changes = Json::object()) {
  return new_encoder({{"model_type", "bert"},
                      {"architectures", {"BertForSequenceClassification"}},
                      {"vocab_size", kVocabulary},
                      {"max_position_embeddings", 9}},
                     seed, changes);
}

inline nn::HfEncoder small_vit(std::uint64_t seed = 1) {
  return new_encoder({{"model_type", "vit"},
                      {"architectures", {"ViTForImageClassification"}},
                      {"image_size", 4},
                      {"patch_size", 2},
                      {"num_channels", 1}},
                     seed, Json::object());
}

// Rows of counting() whose label is their first token modulo the labels; the last token is hidden,
// odd ones are of type 1.
inline Batch labelled(std::int64_t step, std::int64_t rows = 12) {
  const at::Tensor tokens = counting(step, rows);
  at::Tensor mask = at::full(tokens.sizes(), 1, at::kLong);
  mask.select(1, tokens.size(1) - 1).zero_();
  return {tokens, tokens.select(1, 0).remainder(kLabels), mask, tokens.remainder(2)};
}

// Pictures of one shade each, [rows, 1, 4, 4], which is their label.
inline Batch shades(std::int64_t step, std::int64_t rows = 12) {
  const at::Tensor labels = at::arange(rows, at::kLong).add_(step).remainder(kLabels);
  return {labels.to(at::kFloat).sub_(1.0).view({rows, 1, 1, 1}).expand({rows, 1, 4, 4}), labels};
}

}  // namespace paperlab::train
