#pragma once
/// \file
/// Models of a MuddConfig: new, or from directories in the published layout (published.h).

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string>

#include "paperlab/core/export.h"
#include "paperlab/mudd/config.h"
#include "paperlab/mudd/initial_values.h"
#include "paperlab/nn/load.h"

namespace paperlab::mudd {

/// Returns a model with initial_values(config, seed, dtype, init) and the settings to save it with
/// (nn::save).
/// \throws ValueError, DTypeError  as check() and initial_values(); or if norm_eps is 0 in float32
///                                 and the dtype is not float64.
PAPERLAB_API nn::HfDecoder new_model(const MuddConfig& config, std::uint64_t seed,
                                     at::ScalarType dtype = at::kFloat,
                                     const InitOptions& init = {});

/// Loads the model of a directory whose model_type is muddformer or muddpythia: config.json, and
/// safetensors in shards or not. Buffers that the official code stores are skipped.
/// \param dtype  float32, float64, bfloat16 or float16; absent: the files' own.
/// \throws IoError, ValueError  if a file is missing or broken, a setting is not known, or a tensor
///                              is missing, unknown, misshapen or holds NaN, naming it; or if
///                              norm_eps is 0 in float32 and the model is not in float64.
PAPERLAB_API nn::HfDecoder load(const std::string& directory,
                                std::optional<at::ScalarType> dtype = std::nullopt);

/// As load(), with tensors that somebody else has read.
/// \param source   where they are from, for messages.
/// \param tensors  by their names, on the CPU, strided, of one of the types above; they are
///                 copied.
PAPERLAB_API nn::HfDecoder from_tensors(const std::string& directory, const std::string& source,
                                        const nn::NamedTensors& tensors,
                                        std::optional<at::ScalarType> dtype = std::nullopt);

}  // namespace paperlab::mudd
