#include <algorithm>
#include <limits>
#include <tuple>
#include <unordered_set>
#include <utility>

#include "paperlab/core/error.h"
#include "paperlab/core/json.h"
#include "paperlab/io/safetensors_internal.h"

namespace paperlab::io {
namespace {

constexpr std::uint64_t kMaxSize = std::numeric_limits<std::int64_t>::max();

// Takes the header's events: they say more than a parsed value, in which the second of two equal
// keys would win, and they need no memory for a deeply nested text.
class HeaderReader final : public Json::json_sax_t {
 public:
  explicit HeaderReader(const std::string& source) : source_(source) {}

  SafetensorsHeader take() {
    if (has_metadata_) {
      header_.metadata = std::move(metadata_);
    }
    return std::move(header_);
  }

  bool null() override { return wrong("null"); }
  bool boolean(bool value) override { return wrong(value ? "true" : "false"); }
  bool number_float(double, const std::string& text) override {
    return wrong("the number " + text.substr(0, 40));
  }
  bool number_integer(std::int64_t value) override {
    return wrong("the number " + std::to_string(value));
  }
  bool binary(Json::binary_t&) override { return wrong("binary data"); }

  bool number_unsigned(std::uint64_t value) override {
    if (place_ == Place::kShape && value <= kMaxSize) {
      tensor_.shape.push_back(static_cast<std::int64_t>(value));
    } else if (place_ == Place::kOffsets && offsets_.size() < 2 && value <= kMaxSize) {
      offsets_.push_back(value);
    } else {
      wrong("the number " + std::to_string(value));
    }
    return true;
  }

  bool string(std::string& text) override {
    if (place_ == Place::kMetadata) {
      metadata_.emplace(key_, std::move(text));
    } else if (place_ == Place::kTensor && key_ == "dtype") {
      const std::optional<ElementType> type = find_element_type(text);
      if (!type) {
        fail("dtype must be one of " + element_type_names() + ", got " + quoted_name(text));
      }
      tensor_.type = *type;
    } else {
      wrong(quoted_name(text));
    }
    return true;
  }

  bool start_object(std::size_t) override {
    if (place_ == Place::kStart) {
      place_ = Place::kNames;
    } else if (place_ == Place::kNames && key_ == kMetadataKey) {
      place_ = Place::kMetadata;
      has_metadata_ = true;
    } else if (place_ == Place::kNames) {
      place_ = Place::kTensor;
      tensor_ = {};
      tensor_.name = key_;
      fields_.clear();
      offsets_.clear();
    } else {
      wrong("an object");
    }
    return true;
  }

  bool key(std::string& text) override {
    if (place_ == Place::kNames && !names_.insert(text).second) {
      fail((text == kMetadataKey ? "" : "tensor ") + quoted_name(text) + " is there twice");
    }
    if (place_ == Place::kMetadata && metadata_.contains(text)) {
      fail("the key " + quoted_name(text) + " is there twice");
    }
    if (place_ == Place::kTensor) {
      check_field(text);
    }
    key_ = std::move(text);
    return true;
  }

  bool end_object() override {
    if (place_ == Place::kTensor) {
      check_tensor();
      header_.tensors.push_back(std::move(tensor_));
    }
    place_ = place_ == Place::kNames ? Place::kEnd : Place::kNames;
    return true;
  }

  bool start_array(std::size_t) override {
    if (place_ == Place::kTensor && key_ == "shape") {
      place_ = Place::kShape;
    } else if (place_ == Place::kTensor && key_ == "data_offsets") {
      place_ = Place::kOffsets;
    } else {
      wrong("an array");
    }
    return true;
  }

  bool end_array() override {
    place_ = Place::kTensor;
    return true;
  }

  bool parse_error(std::size_t position, const std::string&,
                   const nlohmann::detail::exception&) override {
    place_ = Place::kEnd;
    fail("not JSON at byte " + std::to_string(position));
  }

 private:
  enum class Place { kStart, kNames, kMetadata, kTensor, kShape, kOffsets, kEnd };

  [[noreturn]] void fail(const std::string& what) const {
    std::string where = "header";
    if (place_ == Place::kMetadata) {
      where = "__metadata__";
    } else if (place_ == Place::kTensor || place_ == Place::kShape || place_ == Place::kOffsets) {
      where = "tensor " + quoted_name(tensor_.name);
    }
    throw ValueError(source_ + ": " + where + ": " + what);
  }

  bool wrong(const std::string& got) const {
    const std::string what = place_ == Place::kStart      ? "must be an object"
                             : place_ == Place::kNames    ? quoted_name(key_) + " must be an object"
                             : place_ == Place::kMetadata ? quoted_name(key_) + " must be a string"
                             : key_ == "dtype"            ? "dtype must be a string"
                             : key_ == "shape" ? "shape must be an array of integers in 0..2^63-1"
                                               : "data_offsets must be two integers in 0..2^63-1";
    fail(what + ", got " + got);
  }

  void check_field(const std::string& text) {
    if (text != "dtype" && text != "shape" && text != "data_offsets") {
      fail("unknown key " + quoted_name(text));
    }
    if (std::find(fields_.begin(), fields_.end(), text) != fields_.end()) {
      fail(text + " is there twice");
    }
    fields_.push_back(text);
  }

  // Sets the offset from the start of the data, and the size.
  void check_tensor() {
    for (const char* field : {"dtype", "shape", "data_offsets"}) {
      if (std::find(fields_.begin(), fields_.end(), field) == fields_.end()) {
        fail(std::string(field) + " is missing");
      }
    }
    if (offsets_.size() != 2 || offsets_[0] > offsets_[1]) {
      fail("data_offsets must be two numbers in ascending order");
    }
    const std::optional<std::uint64_t> num_bytes = tensor_bytes(tensor_.type, tensor_.shape);
    if (!num_bytes) {
      fail("no size for the shape " + shape_text(tensor_.shape) + " of " +
           element_type_name(tensor_.type));
    }
    tensor_.offset = offsets_[0];
    tensor_.num_bytes = *num_bytes;
    if (offsets_[1] - offsets_[0] != *num_bytes) {
      fail("data_offsets span " + std::to_string(offsets_[1] - offsets_[0]) + " bytes, " +
           element_type_name(tensor_.type) + " of shape " + shape_text(tensor_.shape) + " needs " +
           std::to_string(*num_bytes));
    }
  }

  const std::string& source_;
  SafetensorsHeader header_;
  Metadata metadata_;
  bool has_metadata_ = false;
  Place place_ = Place::kStart;
  std::unordered_set<std::string> names_;
  std::string key_;
  TensorEntry tensor_;
  std::vector<std::string> fields_;
  std::vector<std::uint64_t> offsets_;
};

// Sorts by position; throws unless the spans cover 0..num_data_bytes-1 once.
void check_cover(const std::string& source, std::vector<TensorEntry>& tensors,
                 std::uint64_t num_data_bytes) {
  const auto end = [](const TensorEntry& tensor) { return tensor.offset + tensor.num_bytes; };
  std::sort(tensors.begin(), tensors.end(), [](const TensorEntry& a, const TensorEntry& b) {
    return std::tie(a.offset, a.num_bytes, a.name) < std::tie(b.offset, b.num_bytes, b.name);
  });
  std::uint64_t covered = 0;
  for (const TensorEntry& tensor : tensors) {
    const std::string which = source + ": tensor " + quoted_name(tensor.name);
    if (end(tensor) > num_data_bytes) {
      throw ValueError(which + ": ends at byte " + std::to_string(end(tensor)) + " of " +
                       std::to_string(num_data_bytes) + " bytes of data: the file is truncated");
    }
    if (tensor.offset != covered) {
      throw ValueError(which + ": starts at byte " + std::to_string(tensor.offset) +
                       (tensor.offset < covered ? ", inside" : ", after a gap behind") +
                       " the tensor before it, which ends at " + std::to_string(covered));
    }
    covered = end(tensor);
  }
  if (covered != num_data_bytes) {
    throw ValueError(source + ": " + std::to_string(num_data_bytes - covered) +
                     " bytes follow the last tensor");
  }
}

}  // namespace

std::string quoted_name(const std::string& name) {
  constexpr std::size_t kShown = 120;
  const std::string text =
      Json(name.substr(0, kShown)).dump(-1, ' ', false, Json::error_handler_t::replace);
  return '\'' + text.substr(1, text.size() - 2) + (name.size() > kShown ? "...'" : "'");
}

std::string shape_text(const std::vector<std::int64_t>& shape) {
  constexpr std::size_t kShown = 16;
  std::string text = "[";
  for (std::size_t i = 0; i < std::min(shape.size(), kShown); ++i) {
    text += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  }
  return text + (shape.size() > kShown ? ", ...]" : "]");
}

std::uint64_t safetensors_header_bytes(const std::string& source, std::string_view first_eight,
                                       std::uint64_t file_bytes) {
  if (first_eight.size() < kLengthBytes || file_bytes < kLengthBytes) {
    throw ValueError(source + ": has " + std::to_string(file_bytes) +
                     " bytes, which is too short for a safetensors file");
  }
  std::uint64_t length = 0;
  for (std::size_t i = 0; i < kLengthBytes; ++i) {
    length |= std::uint64_t{static_cast<unsigned char>(first_eight[i])} << (8 * i);
  }
  if (length > kMaxHeaderBytes) {
    throw ValueError(source + ": a header of " + std::to_string(length) +
                     " bytes; the format allows " + std::to_string(kMaxHeaderBytes) +
                     ": no safetensors file");
  }
  if (length > file_bytes - kLengthBytes) {
    throw ValueError(source + ": a header of " + std::to_string(length) + " bytes in a file of " +
                     std::to_string(file_bytes) + ": truncated, or no safetensors file");
  }
  return kLengthBytes + length;
}

SafetensorsHeader parse_safetensors_header(const std::string& source, std::string_view start,
                                           std::uint64_t file_bytes) {
  const std::uint64_t num_bytes = safetensors_header_bytes(source, start, file_bytes);
  if (start.size() < num_bytes) {
    throw ValueError(source + ": header: " + std::to_string(start.size()) + " of " +
                     std::to_string(num_bytes) + " bytes are there");
  }
  const std::string_view text = start.substr(kLengthBytes, num_bytes - kLengthBytes);
  if (!text.starts_with('{')) {  // the JSON parser would skip white space and a byte order mark
    throw ValueError(source + ": header: must start with '{'");
  }
  if (text.find('\0') != std::string_view::npos) {  // the JSON parser would stop there, content
    throw ValueError(source + ": header: not JSON at byte " + std::to_string(text.find('\0') + 1));
  }
  HeaderReader reader(source);
  Json::sax_parse(text, &reader);
  SafetensorsHeader header = reader.take();
  check_cover(source, header.tensors, file_bytes - num_bytes);
  for (TensorEntry& tensor : header.tensors) {
    tensor.offset += num_bytes;
  }
  return header;
}

}  // namespace paperlab::io
