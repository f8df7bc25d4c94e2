#pragma once
/// \file
/// The weights of a Hugging Face directory: model.safetensors, or model-0000k-of-0000n.safetensors
/// with model.safetensors.index.json.

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "paperlab/core/export.h"
#include "paperlab/io/safetensors.h"

namespace paperlab::io {

constexpr std::uint64_t kMaxShardBytes = 5'000'000'000;  ///< The Hub's usual limit.

/// Returns the file that holds each tensor, as an index file's text says.
/// \param source  the file's name, for messages.
/// \throws ValueError  "SOURCE: reason" unless it is a JSON object whose weight_map maps names to
///                     plain file names (no folder), and no name stands there twice.
PAPERLAB_API std::map<std::string, std::string> parse_shard_index(const std::string& source,
                                                                  std::string_view text);

/// The tensors of a directory, from one file or from shards. Safe to use from several threads.
class PAPERLAB_API Checkpoint {
 public:
  /// Where a tensor lies.
  struct Location {
    const SafetensorsFile* file = nullptr;
    const TensorEntry* entry = nullptr;
  };

  /// Opens model.safetensors, or the index and all its shards; checks all headers.
  /// \throws IoError     if the directory, both files, or a shard is missing.
  /// \throws ValueError  if a file is malformed, or a shard lacks a tensor that the index lists in
  ///                     it, or has another one.
  explicit Checkpoint(const std::string& directory);

  const std::string& directory() const { return directory_; }
  const std::vector<SafetensorsFile>& files() const { return files_; }

  /// All tensors by name.
  const std::map<std::string, Location>& tensors() const { return tensors_; }

  /// \throws ValueError  "DIRECTORY: has no tensor 'NAME'".
  const Location& at(const std::string& name) const;

  /// Of the first file.
  const std::optional<Metadata>& metadata() const { return files_.front().metadata(); }

 private:
  std::string directory_;
  std::vector<SafetensorsFile> files_;
  std::map<std::string, Location> tensors_;
};

/// Writes such a directory tensor by tensor: one file if all tensors fit into `max_shard_bytes`,
/// else shards in the order of names with their index. Files get their names in finish() only;
/// weight files of an earlier checkpoint that do not belong to this one are removed there.
class PAPERLAB_API CheckpointWriter {
 public:
  /// \throws IoError, ValueError  as SafetensorsWriter; the directory must exist.
  CheckpointWriter(std::string directory, std::vector<TensorSpec> tensors,
                   const std::optional<Metadata>& metadata = std::nullopt,
                   std::uint64_t max_shard_bytes = kMaxShardBytes);

  /// The tensors, shard after shard; writing in that order is fastest.
  std::vector<TensorEntry> tensors() const;

  /// As SafetensorsWriter::append().
  void append(const std::string& name, const void* data, std::uint64_t num_bytes);

  /// As SafetensorsWriter::finish().
  void finish();

  /// The first half of finish(): all but the new names. For other files that belong to them.
  void sync();

 private:
  void write_index();
  void remove_others() const;

  std::string directory_;
  std::vector<std::string> names_;  // of the files
  std::vector<SafetensorsWriter> files_;
  std::unique_ptr<AtomicFile> index_;           // of several files
  std::map<std::string, std::size_t> file_of_;  // by tensor
  std::uint64_t total_bytes_ = 0;
};

}  // namespace paperlab::io
