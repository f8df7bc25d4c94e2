#pragma once
/// \file
/// The parameters of a decoder by name and by role: an architecture is the table of its names.

#include <cstdint>
#include <string>
#include <vector>

#include "paperlab/core/export.h"
#include "paperlab/nn/config.h"

namespace paperlab::nn {

enum class Role : std::uint8_t {
  kEmbed,
  kAttentionNorm,
  kQuery,
  kKey,
  kValue,
  kQueryKeyValue,
  kQueryNorm,
  kKeyNorm,
  kOut,
  kFfnNorm,
  kGate,
  kUp,
  kDown,
  kFinalNorm,
  kHead,
  kConnection,  ///< Of what stands in the residual connection's place (connection.h).
};

struct ParameterSpec {
  std::string name;  ///< As in Hugging Face checkpoints: `model.layers.0.self_attn.q_proj.weight`.
  Role role = Role::kEmbed;
  std::int64_t layer = -1;  ///< -1 outside the blocks.
  bool is_bias = false;
  std::vector<std::int64_t> shape;  ///< Linear weights are [out, in].
  std::string other_name{};         ///< That files may have for it; empty: none.
};

/// The families of names.
enum class Family : std::uint8_t { kLlama, kGptNeoX };

/// Returns the parameters of a decoder, in the order in which transformers' module lists them. A
/// tied head is not among them.
PAPERLAB_API std::vector<ParameterSpec> parameter_specs(const DecoderConfig& config, Family family);

/// The names under which files may hold a tied head, the embedding once more.
PAPERLAB_API std::vector<std::string> head_names(Family family);

}  // namespace paperlab::nn
