#pragma once
/// \file
/// Encoders from and to Hugging Face directories, and parts of their parameters by what they do.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "paperlab/core/export.h"
#include "paperlab/core/json.h"
#include "paperlab/io/checkpoint.h"
#include "paperlab/nn/encoder.h"
#include "paperlab/nn/encoder_hf_config.h"
#include "paperlab/nn/hf_config.h"
#include "paperlab/nn/weights.h"

namespace paperlab::nn {

/// An encoder and what its directory says besides.
struct HfEncoder {
  HfDirectory directory;  ///< As it was read, `model` left alone; for a new one the settings alone.
  HfEncoderModel model;
  FileNames file_names{};  ///< Tensors that the files hold twice, or by another name.
  NamedTensors others{};   ///< Of other heads: saved as they were, no parameters.
  std::shared_ptr<Encoder> encoder;
};

/// Loads the encoder of a directory (BERT, RoBERTa, DistilBERT, DeBERTa-v2, ViT) as load() does a
/// decoder: its parameters are the mapped file (else they have memory of their own), in the files'
/// dtype unless another is wanted.
/// \throws IoError, ValueError  as read_hf_files(), read_hf_encoder_config(), io::Checkpoint and
///                              map_weights().
/// \throws UnsupportedError     as ops::require_device().
PAPERLAB_API HfEncoder load_encoder(const std::string& directory,
                                    std::optional<at::ScalarType> dtype = std::nullopt,
                                    bool is_mapped = true, const at::Device& device = at::kCPU);

/// An encoder of these settings with initial values: matrices and tables normal with
/// initializer_range, the row of padding, and biases 0, norms 1.
/// \param config  as config.json.
/// \throws ValueError, DTypeError  as read_hf_encoder_config() and check_initial_dtype().
PAPERLAB_API HfEncoder new_encoder(const Json& config, std::uint64_t seed,
                                   at::ScalarType dtype = at::kFloat);

/// Writes the directory of an encoder: same names of tensors, same settings (the dtype's aside,
/// where it has changed), and the files of tokenizer and image processor as they are where it was
/// loaded from.
/// \throws IoError, ValueError  as save(const SaveRequest&).
PAPERLAB_API void save(const HfEncoder& model, const std::string& directory,
                       std::uint64_t max_shard_bytes = io::kMaxShardBytes);

/// Returns the weights of a role.
///
/// \param role   with a layer: q, k, v, o, up, down, norm (also attention_norm) and ffn_norm, which
///               come after the sublayer of that name, in ViT before it. Without a layer: embed (of
///               pictures the projection of patches), head (which makes the logits), norm (ViT's
///               final norm), position_embed, type_embed, embed_norm, pooler, head_dense,
///               head_norm, relative_embed, relative_norm, class_token.
/// \param layer  0..num_layers-1.
/// \param head   of q, k, v and o, 0..num_heads-1: the rows (of o: the columns) of that head.
/// \return       a view that shares memory with the parameter, differentiable.
/// \throws ValueError  if the encoder has no such part.
PAPERLAB_API at::Tensor tensor_of(const Encoder& encoder, const std::string& role,
                                  std::optional<std::int64_t> layer,
                                  std::optional<std::int64_t> head);

}  // namespace paperlab::nn
