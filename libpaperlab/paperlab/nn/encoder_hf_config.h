#pragma once
/// \file
/// The settings of an encoder's Hugging Face directory: config.json as an EncoderConfig. What
/// transformers 4 and 5 write is read; a setting that would change the numbers and is not known is
/// refused.

#include <optional>
#include <string>
#include <vector>

#include "paperlab/core/export.h"
#include "paperlab/core/json.h"
#include "paperlab/nn/encoder_config.h"

namespace paperlab::nn {

struct HfEncoderModel {
  EncoderConfig config{};
  std::string model_type;            ///< bert, roberta, distilbert, deberta-v2, vit
  std::string architecture;          ///< `architectures[0]`, absent: the model itself
  std::optional<std::string> dtype;  ///< `float32`, ...: only counts where stored types differ.
};

/// The model types that read_hf_encoder_config() knows.
PAPERLAB_API std::vector<std::string> encoder_model_types();

/// Returns the encoder that a config.json describes: of `architectures[0]`, which is the model
/// itself or its form for masked language models, for labels of sequences, of tokens or of
/// pictures. Without `architectures` it is the model itself, as for transformers' AutoModel. An
/// absent setting has the default of the model type's configuration class in transformers.
/// \param source  the file's name, for messages.
/// \throws ValueError  as read_hf_config().
PAPERLAB_API HfEncoderModel read_hf_encoder_config(const std::string& source, const Json& config);

}  // namespace paperlab::nn
