#include "paperlab/io/safetensors.h"

#include <algorithm>
#include <tuple>
#include <utility>

#include "paperlab/core/error.h"
#include "paperlab/core/json.h"
#include "paperlab/io/safetensors_internal.h"

namespace paperlab::io {
namespace {

// A tensor with its bytes; throws unless they can be counted.
TensorEntry entry_of(const std::string& path, TensorSpec&& spec) {
  const std::optional<std::uint64_t> num_bytes = tensor_bytes(spec.type, spec.shape);
  if (!num_bytes) {
    throw ValueError(path + ": tensor " + quoted_name(spec.name) + ": no size for the shape " +
                     shape_text(spec.shape) + " of " + element_type_name(spec.type));
  }
  return {std::move(spec.name), spec.type, std::move(spec.shape), 0, *num_bytes};
}

// The entries in the order of the file, with offsets from the start of the data.
std::vector<TensorEntry> sorted_entries(const std::string& path, std::vector<TensorSpec> specs) {
  std::vector<TensorEntry> tensors;
  tensors.reserve(specs.size());
  for (TensorSpec& spec : specs) {
    if (spec.name == kMetadataKey) {
      throw ValueError(path + ": a tensor must not have the name '__metadata__'");
    }
    tensors.push_back(entry_of(path, std::move(spec)));
  }
  std::sort(tensors.begin(), tensors.end(), [](const TensorEntry& a, const TensorEntry& b) {
    return std::tie(b.type, a.name) < std::tie(a.type, b.name);
  });
  std::uint64_t offset = 0;
  for (TensorEntry& tensor : tensors) {
    tensor.offset = offset;
    offset += tensor.num_bytes;
    if (offset > kMaxFileBytes) {
      throw ValueError(path + ": the tensors are too large for a file");
    }
  }
  return tensors;
}

// A JSON string; throws if the text is not UTF-8.
std::string json_string(const std::string& path, const std::string& text) {
  try {
    return Json(text).dump();
  } catch (const Json::type_error&) {
    throw ValueError(path + ": names and metadata must be UTF-8, got " + quoted_name(text));
  }
}

std::string metadata_text(const std::string& path, const Metadata& metadata) {
  std::string text = "\"__metadata__\":{";
  const char* separator = "";
  for (const auto& [key, value] : metadata) {
    text += separator + json_string(path, key) + ':' + json_string(path, value);
    separator = ",";
  }
  return text + '}';
}

std::string entry_text(const std::string& path, const TensorEntry& tensor) {
  std::string shape;
  for (const std::int64_t size : tensor.shape) {
    shape += (shape.empty() ? "" : ",") + std::to_string(size);
  }
  return json_string(path, tensor.name) + ":{\"dtype\":\"" + element_type_name(tensor.type) +
         "\",\"shape\":[" + shape + "],\"data_offsets\":[" + std::to_string(tensor.offset) + ',' +
         std::to_string(tensor.offset + tensor.num_bytes) + "]}";
}

// The length and the text, padded to a multiple of 8.
std::string header_bytes(const std::string& path, const std::vector<TensorEntry>& tensors,
                         const std::optional<Metadata>& metadata) {
  std::string text = "{";
  if (metadata) {
    text += metadata_text(path, *metadata);
  }
  for (const TensorEntry& tensor : tensors) {
    text += text.size() > 1 ? "," : "";
    text += entry_text(path, tensor);
  }
  text += '}';
  text.append((kLengthBytes - text.size() % kLengthBytes) % kLengthBytes, ' ');
  if (text.size() > kMaxHeaderBytes) {
    throw ValueError(path + ": the header would have " + std::to_string(text.size()) +
                     " bytes; the format allows " + std::to_string(kMaxHeaderBytes));
  }
  std::string length(kLengthBytes, '\0');
  for (std::size_t i = 0; i < kLengthBytes; ++i) {
    length[i] = static_cast<char>(text.size() >> (8 * i) & 0xFF);
  }
  return length + text;
}

std::unordered_map<std::string_view, std::size_t> index_of(
    const std::string& path, const std::vector<TensorEntry>& tensors) {
  std::unordered_map<std::string_view, std::size_t> index;
  index.reserve(tensors.size());
  for (const TensorEntry& tensor : tensors) {
    if (!index.try_emplace(tensor.name, index.size()).second) {
      throw ValueError(path + ": tensor " + quoted_name(tensor.name) + " is there twice");
    }
  }
  return index;
}

SafetensorsHeader read_header(const InputFile& file) {
  std::string start(std::min(kLengthBytes, file.num_bytes()), '\0');
  file.read({0, start.size(), start.data()});
  const std::uint64_t num_bytes = safetensors_header_bytes(file.path(), start, file.num_bytes());
  start.resize(num_bytes);
  file.read({kLengthBytes, num_bytes - kLengthBytes, start.data() + kLengthBytes});
  return parse_safetensors_header(file.path(), start, file.num_bytes());
}

}  // namespace

SafetensorsFile::SafetensorsFile(const std::string& path)
    : file_(path), header_(read_header(file_)), index_(index_of(path, header_.tensors)) {}

const TensorEntry* SafetensorsFile::find(const std::string& name) const {
  const auto found = index_.find(name);
  return found == index_.end() ? nullptr : &header_.tensors[found->second];
}

const TensorEntry& SafetensorsFile::at(const std::string& name) const {
  const TensorEntry* entry = find(name);
  if (entry == nullptr) {
    throw ValueError(path() + ": has no tensor " + quoted_name(name));
  }
  return *entry;
}

Layout lay_out(const std::string& source, std::vector<TensorSpec> specs,
               const std::optional<Metadata>& metadata) {
  Layout layout;
  layout.tensors = sorted_entries(source, std::move(specs));
  layout.header = header_bytes(source, layout.tensors, metadata);
  layout.file_bytes = layout.header.size();
  for (TensorEntry& tensor : layout.tensors) {
    tensor.offset += layout.header.size();
    layout.file_bytes += tensor.num_bytes;
  }
  return layout;
}

SafetensorsWriter::SafetensorsWriter(const std::string& path, std::vector<TensorSpec> tensors,
                                     const std::optional<Metadata>& metadata) {
  Layout layout = lay_out(path, std::move(tensors), metadata);
  tensors_ = std::move(layout.tensors);
  index_ = index_of(path, tensors_);
  written_bytes_.resize(tensors_.size(), 0);
  file_ = std::make_unique<AtomicFile>(path, layout.file_bytes);
  file_->write(0, layout.header.data(), layout.header.size());
}

void SafetensorsWriter::append(const std::string& name, const void* data, std::uint64_t num_bytes) {
  const auto found = index_.find(name);
  if (found == index_.end()) {
    throw ValueError(file_->path() + ": tensor " + quoted_name(name) + " was not declared");
  }
  const TensorEntry& tensor = tensors_[found->second];
  std::uint64_t& written = written_bytes_[found->second];
  if (num_bytes > tensor.num_bytes - written) {
    throw ValueError(file_->path() + ": tensor " + quoted_name(name) + " has " +
                     std::to_string(tensor.num_bytes) + " bytes, got " +
                     std::to_string(written + num_bytes));
  }
  file_->write(tensor.offset + written, data, num_bytes);
  written += num_bytes;
}

void SafetensorsWriter::sync() {
  for (std::size_t i = 0; i < tensors_.size(); ++i) {
    if (written_bytes_[i] != tensors_[i].num_bytes) {
      throw ValueError(file_->path() + ": tensor " + quoted_name(tensors_[i].name) + " has " +
                       std::to_string(tensors_[i].num_bytes) + " bytes, only " +
                       std::to_string(written_bytes_[i]) + " were written");
    }
  }
  file_->sync();
}

void SafetensorsWriter::finish() {
  sync();
  file_->finish();
}

}  // namespace paperlab::io
