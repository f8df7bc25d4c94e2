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
  kConnection,     ///< Of what stands in the residual connection's place (connection.h).
  kPositionEmbed,  ///< Learned positions.
  kProjectIn,      ///< From the embeddings' width to the blocks' (OPT), and back.
  kProjectOut,
  kPostAttentionNorm,  ///< Of a sublayer's output, before it is added (Gemma 2).
  kPostFfnNorm,
  kTypeEmbed,  ///< Of encoders: token types, the norm after the embeddings, ...
  kEmbedNorm,
  kPatchEmbed,
  kClassToken,
  kRelativeEmbed,
  kRelativeNorm,
  kPooler,
  kHeadDense,
  kHeadNorm,
  kPositionQuery,  ///< Of relative positions, instead of the block's own projections (DeBERTa).
  kPositionKey,
  kConv,
  kConvNorm,
  kUnused,  ///< Part of the checkpoint that no logit depends on.
};

struct ParameterSpec {
  std::string name;  ///< As in Hugging Face checkpoints: `model.layers.0.self_attn.q_proj.weight`.
  Role role = Role::kEmbed;
  std::int64_t layer = -1;  ///< -1 outside the blocks.
  bool is_bias = false;
  std::vector<std::int64_t> shape;  ///< Linear weights are [out, in].
  std::string other_name{};         ///< That files may have for it; empty: none.
  bool is_transposed = false;       ///< A linear weight that is [in, out] (GPT-2).
};

/// The families of names (nn/families).
enum class Family : std::uint8_t { kLlama, kGptNeoX, kGpt2, kOpt };

/// Returns the parameters of a decoder, in the order in which transformers' module lists them. A
/// tied head is not among them.
PAPERLAB_API std::vector<ParameterSpec> parameter_specs(const DecoderConfig& config, Family family);

/// The names under which files may hold a tied head, the embedding once more.
PAPERLAB_API std::vector<std::string> head_names(Family family);

}  // namespace paperlab::nn
