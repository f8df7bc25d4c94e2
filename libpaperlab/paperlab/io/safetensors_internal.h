#pragma once
// What the reader and the writer of safetensors share.

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "paperlab/io/safetensors.h"

namespace paperlab::io {

constexpr const char* kMetadataKey = "__metadata__";
constexpr std::uint64_t kLengthBytes = 8;
constexpr std::uint64_t kMaxHeaderBytes = 100'000'000;
constexpr std::uint64_t kMaxFileBytes = (std::uint64_t{1} << 63) - 1 - 2 * kMaxHeaderBytes;

// [2, 3]; for messages, so long ones are cut.
std::string shape_text(const std::vector<std::int64_t>& shape);

/// Where everything goes in a file to be written.
struct Layout {
  std::vector<TensorEntry> tensors;  // in the order of the file
  std::string header;                // the length and the text
  std::uint64_t file_bytes = 0;
};

// Errors as of SafetensorsWriter.
Layout lay_out(const std::string& source, std::vector<TensorSpec> specs,
               const std::optional<Metadata>& metadata);

}  // namespace paperlab::io
