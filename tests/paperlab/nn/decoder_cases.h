#pragma once
// Small decoders of both families, for the tests.

#include <ATen/TensorOperators.h>
#include <ATen/ops/allclose.h>
#include <ATen/ops/arange.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

#include "paperlab/nn/decoder.h"
#include "paperlab/nn/init.h"

namespace paperlab::nn {

inline DecoderConfig llama() {
  DecoderConfig config;
  config.vocab_size = 31;
  config.num_layers = 2;
  config.d_model = 12;
  config.num_heads = 4;
  config.num_kv_heads = 2;
  config.head_dim = 6;
  config.d_ff = 20;
  config.max_positions = 32;
  config.rope.rotary_dim = 6;
  config.rope.max_positions = 32;
  config.windows = {0, 3};
  config.init_std = 0.4;
  return config;
}

inline DecoderConfig neox() {
  DecoderConfig config = llama();
  config.num_kv_heads = 4;
  config.head_dim = 3;
  config.rope.rotary_dim = 2;
  config.norm = Norm::kLayer;
  config.activation = Activation::kGelu;
  config.has_gate = false;
  config.has_fused_qkv = config.has_qkv_bias = config.has_out_bias = config.has_ffn_bias = true;
  config.is_parallel = true;
  config.windows.clear();
  return config;
}

inline Family family_of(const DecoderConfig& config) {
  return config.has_fused_qkv ? Family::kGptNeoX : Family::kLlama;
}

inline std::vector<at::Tensor> values_of(const DecoderConfig& config,
                                         at::ScalarType dtype = at::kDouble) {
  return initial_values(config, family_of(config), Init::kNormal, 3, dtype);
}

inline Decoder new_decoder(const DecoderConfig& config, at::ScalarType dtype = at::kDouble) {
  return {config, family_of(config), values_of(config, dtype)};
}

// [2, length], different in each row and place.
inline at::Tensor some_tokens(std::int64_t length = 7) {
  return at::arange(2 * length, at::kLong).mul(11).remainder(31).view({2, length});
}

inline void expect_close(const at::Tensor& got, const at::Tensor& wanted) {
  ASSERT_EQ(got.sizes(), wanted.sizes());
  EXPECT_TRUE(at::allclose(got, wanted, 1e-11, 1e-12));
}

}  // namespace paperlab::nn
