#pragma once
/// \file
/// The safetensors format: 8 bytes of header length (little endian), a JSON header of at most 100
/// MB (name -> dtype, shape, data_offsets; `__metadata__` -> strings), then the tensors' bytes.

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "paperlab/core/export.h"
#include "paperlab/core/parallel.h"
#include "paperlab/io/element_type.h"
#include "paperlab/io/file.h"

namespace paperlab::io {

using Metadata = std::map<std::string, std::string>;

/// What a tensor is, without its bytes.
struct TensorSpec {
  std::string name;
  ElementType type = ElementType::kF32;
  std::vector<std::int64_t> shape;
};

/// A tensor of a file. Its bytes are in row-major order.
struct TensorEntry {
  std::string name;
  ElementType type = ElementType::kF32;
  std::vector<std::int64_t> shape;
  std::uint64_t offset = 0;  ///< of its first byte in the file; a multiple of nothing in old files
  std::uint64_t num_bytes = 0;
};

/// A checked header.
struct SafetensorsHeader {
  std::vector<TensorEntry> tensors;  ///< in the order of their bytes
  std::optional<Metadata> metadata;  ///< absent if the file has none
};

/// Returns the header of a file of `file_bytes` bytes that starts with `start`: its 8 bytes of
/// length and, as far as they are there, the JSON text.
///
/// \param source  the file's name, for messages.
/// \throws ValueError  "SOURCE: reason" unless the length fits the file, the text is a JSON object
///                     of exactly this form with no name twice, and the tensors' spans are those
///                     of their types and shapes and cover the file without overlap or gap.
PAPERLAB_API SafetensorsHeader parse_safetensors_header(const std::string& source,
                                                        std::string_view start,
                                                        std::uint64_t file_bytes);

/// How many bytes of a file parse_safetensors_header needs: 8 and the header's length.
/// \throws ValueError  if the length is above 100 MB or above what the file holds.
PAPERLAB_API std::uint64_t safetensors_header_bytes(const std::string& source,
                                                    std::string_view first_eight,
                                                    std::uint64_t file_bytes);

/// A safetensors file that is open for reading. Safe to use from several threads.
class PAPERLAB_API SafetensorsFile {
 public:
  /// Reads and checks the header.
  /// \throws IoError, ValueError  as InputFile and parse_safetensors_header.
  explicit SafetensorsFile(const std::string& path);

  const std::string& path() const { return file_.path(); }
  const std::vector<TensorEntry>& tensors() const { return header_.tensors; }
  const std::optional<Metadata>& metadata() const { return header_.metadata; }

  /// The tensor of that name, or null.
  const TensorEntry* find(const std::string& name) const;

  /// As find().
  /// \throws ValueError  "FILE: has no tensor 'NAME'".
  const TensorEntry& at(const std::string& name) const;

  /// The open file, for reads by position and for mapping.
  const InputFile& file() const { return file_; }

 private:
  InputFile file_;
  SafetensorsHeader header_;
  std::unordered_map<std::string_view, std::size_t> index_;
};

/// Writes a safetensors file of which names, types and shapes are known first, with memory for the
/// header only. Tensors lie in the file by type, the widest first, then by name: the bytes do not
/// depend on the order of `tensors`, and each tensor is aligned to its element. The header is
/// padded with spaces, so the data start at a multiple of 8. The file appears under its name with
/// finish(); before, it is `path`.tmp, which the destructor removes.
class PAPERLAB_API SafetensorsWriter {
 public:
  /// \throws ValueError  if a name is `__metadata__`, comes twice or is not UTF-8 (metadata too),
  ///                     if a shape is too large, or if the header is above 100 MB.
  /// \throws IoError     as AtomicFile.
  SafetensorsWriter(const std::string& path, std::vector<TensorSpec> tensors,
                    const std::optional<Metadata>& metadata = std::nullopt);

  /// The tensors in the order of the file; writing in that order is fastest.
  const std::vector<TensorEntry>& tensors() const { return tensors_; }

  /// Writes the next `num_bytes` bytes of a tensor. Tensors may come in any order, and in pieces.
  /// \throws ValueError  if the tensor is not declared or would become longer than declared.
  void append(const std::string& name, const void* data, std::uint64_t num_bytes);

  /// Makes all of it permanent and visible.
  /// \throws ValueError  if a tensor is incomplete; nothing is visible then.
  void finish();

  /// Removes what was written, as the destructor does; nothing can be written afterwards.
  void discard() { file_->discard(); }

  /// The first half of finish(): all but the new name. For several files that belong together.
  void sync();

 private:
  std::vector<TensorEntry> tensors_;
  std::unordered_map<std::string_view, std::size_t> index_;
  std::vector<std::uint64_t> written_bytes_;  // of each tensor
  std::unique_ptr<AtomicFile> file_;
};

/// `name` in quotes for a message: short, and with line breaks and the like escaped.
PAPERLAB_API std::string quoted_name(const std::string& name);

}  // namespace paperlab::io
