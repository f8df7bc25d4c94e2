#pragma once
// A small decoder for the tests of training.

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/zeros.h>

#include <cstdint>

#include "paperlab/core/json.h"
#include "paperlab/nn/load.h"

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

}  // namespace paperlab::train
