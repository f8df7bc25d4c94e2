#pragma once
/// \file
/// Decoders from and to Hugging Face directories.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "paperlab/core/error.h"
#include "paperlab/core/export.h"
#include "paperlab/nn/decoder.h"
#include "paperlab/nn/hf_config.h"
#include "paperlab/nn/init.h"
#include "paperlab/nn/weights.h"

namespace paperlab::nn {

/// A decoder and what its directory says besides.
struct HfDecoder {
  HfDirectory directory;   ///< As it was read; for a new decoder the settings alone.
  FileNames file_names{};  ///< Tensors that the files hold twice, or by another name.
  std::shared_ptr<Decoder> decoder;
  /// Of the parameters as the settings describe them; save() writes another one into the settings.
  std::optional<at::ScalarType> dtype{};
};

/// Loads the decoder of a directory (Llama, Mistral, Qwen2, Qwen3, GPT-NeoX, GPT-2, OPT, Gemma).
/// Its parameters are the mapped file (else they have memory of their own), in the files' dtype
/// unless another is wanted; on another device than the CPU they are copies.
/// \throws IoError, ValueError  as read_hf_directory(), io::Checkpoint and map_weights().
/// \throws UnsupportedError     as ops::require_device().
PAPERLAB_API HfDecoder load(const std::string& directory,
                            std::optional<at::ScalarType> dtype = std::nullopt,
                            bool is_mapped = true, const at::Device& device = at::kCPU);

/// A decoder of these settings with initial values.
/// \param config  as config.json.
/// \throws ValueError, DTypeError  as read_hf_config() and initial_values().
PAPERLAB_API HfDecoder new_decoder(const Json& config, Init init, std::uint64_t seed,
                                   at::ScalarType dtype = at::kFloat);

/// Writes the directory of a decoder: same names of tensors, same settings (the dtype's aside,
/// where it has changed), and the tokenizer's files as they are where it was loaded from.
/// \throws IoError, ValueError  as save(const SaveRequest&).
PAPERLAB_API void save(const HfDecoder& model, const std::string& directory);

}  // namespace paperlab::nn
