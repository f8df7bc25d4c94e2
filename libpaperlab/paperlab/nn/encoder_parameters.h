#pragma once
/// \file
/// The parameters of encoders by name and by role: an architecture is the table of its names.

#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "paperlab/core/export.h"
#include "paperlab/nn/encoder_config.h"
#include "paperlab/nn/parameters.h"

namespace paperlab::nn {

/// Returns the parameters of an encoder in the order in which transformers' module lists them. A
/// tied head is not among them, its bias is.
PAPERLAB_API std::vector<ParameterSpec> encoder_parameter_specs(const EncoderConfig& config);

/// Tensors that a file may hold once more: copy -> parameter.
PAPERLAB_API std::map<std::string, std::string> encoder_copies(const EncoderConfig& config);

/// The name of the layer that makes logits of a vocabulary, also where it is the embedding.
PAPERLAB_API std::string vocabulary_layer_name(const EncoderConfig& config);

/// Returns the names of linear layers that go by two, in files and in the memory of transformers 5
/// (ViT's): each one's other name, both ways.
PAPERLAB_API std::map<std::string, std::string> other_linear_names(const EncoderConfig& config);

/// Names that files may have in the place of a parameter's, besides its other_name: `gamma` and
/// `beta` of norms that TensorFlow wrote, and names with or without the model's prefix.
PAPERLAB_API std::vector<std::string> encoder_file_names(const EncoderConfig& config,
                                                         const ParameterSpec& spec);

/// Whether files may hold a tensor of this name that the model leaves aside: of other heads, or of
/// positions that it does not read (DeBERTa). They stay as they are when it is saved.
PAPERLAB_API bool is_of_other_head(const EncoderConfig& config, std::string_view name);

/// Whether a tensor of this name is a buffer of old versions of transformers.
PAPERLAB_API bool is_encoder_buffer(std::string_view name);

}  // namespace paperlab::nn
