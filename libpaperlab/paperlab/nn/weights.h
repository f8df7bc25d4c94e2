#pragma once
/// \file
/// The weights of a Hugging Face directory as tensors that lie in the mapped files, and the
/// directory that holds such weights.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "paperlab/core/export.h"
#include "paperlab/core/json.h"
#include "paperlab/io/checkpoint.h"
#include "paperlab/nn/hf_config.h"
#include "paperlab/nn/parameters.h"

namespace paperlab::nn {

using NamedTensors = std::vector<std::pair<std::string, at::Tensor>>;

/// The names of a parameter in files, where they are not its own name alone.
using FileNames = std::map<std::string, std::vector<std::string>>;

struct MapOptions {
  std::optional<at::ScalarType> dtype{};        ///< Of the result; absent: as stored.
  std::optional<at::ScalarType> mixed_dtype{};  ///< Where stored types differ; absent: the widest.
  /// Tensors that may be there and are parameters once more, bit for bit: copy -> parameter.
  std::map<std::string, std::string> copies{};
  /// Whether a tensor of this name is no parameter and may be there. Null: buffers that old
  /// versions of transformers stored.
  std::function<bool(std::string_view name)> is_buffer{};
  bool is_mapped = true;    ///< Else the tensors have memory of their own.
  bool is_writable = true;  ///< Else a write to a mapped tensor ends the program.
  bool checks_nan = true;   ///< Refuse NaN.
  std::string config_name;  ///< Of config.json, for messages; may be empty.
};

struct Weights {
  NamedTensors tensors;    ///< In the order of the specs, by their names.
  FileNames file_names{};  ///< For SaveRequest.
  std::vector<std::shared_ptr<io::Mapping>> mappings{};  ///< In which tensors may lie.
};

/// Returns the parameters of `specs` on the CPU, contiguous, of one dtype: float32, float64,
/// bfloat16 or float16. A tensor of the wanted type lies in the mapped file, without a copy; writes
/// to it stay in memory. Tensors keep the mapping alive, also when the file gets another one under
/// its name; who shortens it in place ends the program, unless `is_mapped` is false. Of a mapped
/// file hardly more than the largest tensor is in memory at a time, until somebody uses the
/// tensors.
/// \throws ValueError  naming file and tensor: if tensors are missing or unknown, if a shape or
///                     type is not as wanted, if a copy differs, or if a value is NaN (infinity
///                     passes). Buffers are skipped.
/// \throws IoError     if a file cannot be mapped or read.
PAPERLAB_API Weights map_weights(const io::Checkpoint& checkpoint,
                                 const std::vector<ParameterSpec>& specs,
                                 const MapOptions& options = {});

/// As above, with the parameters of the model and the copies that a tied head allows; stored types
/// that differ become the config's dtype.
PAPERLAB_API Weights map_weights(const io::Checkpoint& checkpoint, const HfModel& model,
                                 MapOptions options = {});

/// Reads every element once, on all threads.
/// \throws ValueError  "SOURCE: tensor 'NAME' holds NaN at index [i, j]", the first by order.
PAPERLAB_API void check_no_nan(const std::string& source, const NamedTensors& tensors);

/// Returns the configuration with this dtype, under the keys that it has for it; one without stays
/// as it is.
PAPERLAB_API Json with_dtype(Json config, at::ScalarType dtype);

struct SaveRequest {
  std::string directory;
  Json config;
  std::optional<Json> generation_config{};
  NamedTensors tensors;            ///< Of any strides and devices.
  FileNames file_names{};          ///< As Weights has them.
  std::vector<std::string> files;  ///< Paths of files to copy byte for byte (the tokenizer's).
  std::uint64_t max_shard_bytes = io::kMaxShardBytes;
};

/// Writes a Hugging Face directory: config.json, generation_config.json, the weights and copies of
/// files. All files are complete under temporary names before the first gets its own, so an error
/// leaves what was there; the directory may be the one that the tensors are mapped from. Makes the
/// directory, and removes a generation_config.json and weight files that belong to an earlier
/// checkpoint.
/// \throws IoError     "FILE: ..." if the directory is not writable, the disk is full, ...
/// \throws ValueError  if a tensor's type or layout cannot be written, or a name comes twice.
PAPERLAB_API void save(const SaveRequest& request);

}  // namespace paperlab::nn
