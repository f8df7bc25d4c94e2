#pragma once
/// \file
/// Decoders that are larger than memory, to be evaluated.

#include <optional>
#include <string>

#include "paperlab/core/export.h"
#include "paperlab/nn/load.h"

namespace paperlab::nn {

/// As load(), for evaluation alone: a linear layer in a block reads its matrix from the mapped file
/// when it is applied, converts it if another dtype is wanted, and lets its pages go afterwards. In
/// memory are one such matrix, the embedding and the head (of the files' dtype: as far as they are
/// read), and vectors. The results have the bits of a decoder that load() returns.
///
/// The decoder must not be trained, saved or moved: its parameters cannot be written to, or stand
/// for matrices of another dtype.
/// \throws IoError, ValueError  as load().
PAPERLAB_API HfDecoder load_streamed(const std::string& directory,
                                     std::optional<at::ScalarType> dtype = std::nullopt);

}  // namespace paperlab::nn
