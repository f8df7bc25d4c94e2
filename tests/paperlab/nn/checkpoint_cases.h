#pragma once
// Small models in files, for tests of weights.

#include <ATen/ops/arange.h>
#include <ATen/ops/equal.h>

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "paperlab/io/checkpoint.h"
#include "paperlab/nn/weights.h"
#include "tests/experiments/scratch.h"

namespace paperlab::nn {

using experiments::Scratch;
using Tensors = std::map<std::string, at::Tensor>;

inline Json llama_config() {
  return {{"model_type", "llama"},    {"vocab_size", 10},       {"hidden_size", 8},
          {"intermediate_size", 6},   {"num_hidden_layers", 2}, {"num_attention_heads", 2},
          {"num_key_value_heads", 1}, {"eos_token_id", 3}};
}

inline Json gpt_neox_config() {
  return {{"model_type", "gpt_neox"}, {"vocab_size", 10},       {"hidden_size", 16},
          {"intermediate_size", 6},   {"num_hidden_layers", 2}, {"num_attention_heads", 2}};
}

// Each parameter's elements count on from those of the one before.
inline Tensors values(const HfModel& model, at::ScalarType type = at::kFloat) {
  Tensors tensors;
  std::int64_t next = 0;
  for (const ParameterSpec& spec : parameter_specs(model.config, model.family)) {
    std::int64_t count = 1;
    for (const std::int64_t size : spec.shape) {
      count *= size;
    }
    tensors[spec.name] =
        at::arange(next, next + count, at::kDouble).div(64).view(spec.shape).to(type);
    next += count;
  }
  return tensors;
}

inline io::ElementType element_type(const at::Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case at::kDouble:
      return io::ElementType::kF64;
    case at::kBFloat16:
      return io::ElementType::kBF16;
    case at::kHalf:
      return io::ElementType::kF16;
    case at::kInt:
      return io::ElementType::kI32;
    case at::kByte:
      return io::ElementType::kU8;
    default:
      return io::ElementType::kF32;
  }
}

inline void write_weights(const std::string& directory, const Tensors& tensors,
                          std::uint64_t max_shard_bytes = io::kMaxShardBytes) {
  std::filesystem::create_directories(directory);
  std::vector<io::TensorSpec> specs;
  for (const auto& [name, tensor] : tensors) {
    specs.push_back({name, element_type(tensor), tensor.sizes().vec()});
  }
  io::CheckpointWriter writer(directory, specs, std::nullopt, max_shard_bytes);
  for (const auto& [name, tensor] : tensors) {
    writer.append(name, tensor.contiguous().const_data_ptr(), tensor.nbytes());
  }
  writer.finish();
}

inline void expect_equal(const NamedTensors& got, const Tensors& expected) {
  EXPECT_EQ(got.size(), expected.size());
  for (const auto& [name, tensor] : got) {
    ASSERT_TRUE(expected.count(name) == 1) << name;
    EXPECT_TRUE(at::equal(tensor, expected.at(name))) << name;
  }
}

// All files of a folder with their bytes.
inline std::map<std::string, std::string> contents(const std::string& directory) {
  std::map<std::string, std::string> files;
  for (const auto& item : std::filesystem::directory_iterator(directory)) {
    std::ifstream file(item.path(), std::ios::binary);
    files[item.path().filename()] = {std::istreambuf_iterator<char>(file), {}};
  }
  return files;
}

}  // namespace paperlab::nn
