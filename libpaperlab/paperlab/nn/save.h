#pragma once
/// \file
/// Directories with weights in shards of a chosen size, or in another format than safetensors.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <string>

#include "paperlab/core/export.h"
#include "paperlab/io/checkpoint.h"
#include "paperlab/nn/load.h"
#include "paperlab/nn/weights.h"

namespace paperlab::nn {

/// The weight files of a directory.
class PAPERLAB_API WeightFiles {
 public:
  virtual ~WeightFiles() = default;

  /// Makes all files, complete and on disk, under temporary names.
  /// \param tensors  by their names in files; of any strides and devices.
  virtual void write(const std::map<std::string, at::Tensor>& tensors) = 0;

  /// Gives them their names, and removes files that a reader would take in their place.
  virtual void finish() = 0;

  /// Removes files that still have temporary names; called last, whether or not something failed.
  virtual void discard() noexcept = 0;
};

struct SaveOptions {
  std::uint64_t max_shard_bytes = io::kMaxShardBytes;  ///< Of safetensors.
  WeightFiles* weight_files = nullptr;                 ///< In the place of safetensors.
};

/// As save(model, directory).
PAPERLAB_API void save(const HfDecoder& model, const std::string& directory,
                       const SaveOptions& options);

/// As save(request), with these files in the place of safetensors.
PAPERLAB_API void save(const SaveRequest& request, WeightFiles& files);

}  // namespace paperlab::nn
