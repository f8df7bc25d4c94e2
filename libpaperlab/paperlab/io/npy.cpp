#include "paperlab/io/npy.h"

#include <algorithm>
#include <charconv>
#include <cstring>
#include <optional>
#include <set>
#include <utility>

#include "paperlab/core/error.h"
#include "paperlab/io/npy_internal.h"
#include "paperlab/io/safetensors_internal.h"

namespace paperlab::io {
namespace {

constexpr std::string_view kMagic = "\x93NUMPY";
constexpr std::size_t kAlignment = 64;
constexpr std::size_t kMaxNpyHeader = 1 << 20;
constexpr std::size_t kMaxDims = 64;  // NumPy's own limit

struct NumpyName {
  ElementType type;
  std::string_view name;
};

constexpr NumpyName kNumpyNames[] = {
    {ElementType::kBool, "|b1"}, {ElementType::kU8, "|u1"},  {ElementType::kI8, "|i1"},
    {ElementType::kI16, "<i2"},  {ElementType::kU16, "<u2"}, {ElementType::kF16, "<f2"},
    {ElementType::kI32, "<i4"},  {ElementType::kU32, "<u4"}, {ElementType::kF32, "<f4"},
    {ElementType::kC64, "<c8"},  {ElementType::kF64, "<f8"}, {ElementType::kI64, "<i8"},
    {ElementType::kU64, "<u8"},
};

// Reads the header, a literal of a Python dictionary such as
// {'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }
class DictReader {
 public:
  DictReader(const std::string& source, std::string_view text) : source_(source), text_(text) {}

  void read(NpyView& array) {
    expect('{');
    while (!accept('}')) {
      const std::string key = quoted();
      expect(':');
      if (!keys_.insert(key).second) {
        fail("'" + key + "' is there twice");
      }
      value(key, array);
      if (!accept(',')) {
        expect('}');
        break;
      }
    }
    skip_space();
    if (!text_.empty()) {
      fail("text follows the dictionary");
    }
    if (keys_.size() != 3) {
      fail("needs the keys descr, fortran_order and shape");
    }
  }

 private:
  [[noreturn]] void fail(const std::string& what) const {
    throw ValueError(source_ + ": header: " + what);
  }

  void skip_space() {
    text_.remove_prefix(std::min(text_.find_first_not_of(" \t\r\n"), text_.size()));
  }

  bool accept(char wanted) {
    skip_space();
    if (!text_.starts_with(wanted)) {
      return false;
    }
    text_.remove_prefix(1);
    return true;
  }

  void expect(char wanted) {
    if (!accept(wanted)) {
      fail(std::string("'") + wanted + "' is missing");
    }
  }

  // A string literal; escapes and other kinds have no place here.
  std::string quoted() {
    skip_space();
    if (text_.empty() || (text_[0] != '\'' && text_[0] != '"')) {
      fail("a quoted string is missing");
    }
    const std::size_t end = text_.find(text_[0], 1);
    if (end == std::string_view::npos || end > 64 ||
        text_.substr(0, end).find('\\') != std::string_view::npos) {
      fail("a string does not end");
    }
    const std::string inside(text_.substr(1, end - 1));
    text_.remove_prefix(end + 1);
    return inside;
  }

  void value(const std::string& key, NpyView& array) {
    if (key == "descr") {
      skip_space();
      if (text_.starts_with('[')) {
        throw DTypeError(source_ + ": elements with fields are not supported");
      }
      array.type = element_type(quoted());
    } else if (key == "fortran_order") {
      array.is_fortran = boolean();
    } else if (key == "shape") {
      array.shape = shape();
    } else {
      fail("unknown key " + quoted_name(key));
    }
  }

  ElementType element_type(const std::string& name) const {
    for (const NumpyName& known : kNumpyNames) {
      // One byte has no order, so '<' and '=' and '|' mean the same there.
      if (name == known.name ||
          (known.name[0] == '|' && name.size() == 3 && name.substr(1) == known.name.substr(1))) {
        return known.type;
      }
    }
    throw DTypeError(source_ +
                     ": elements must be little-endian bool, integer, float or "
                     "complex64, got " +
                     quoted_name(name));
  }

  bool boolean() {
    skip_space();
    for (const std::string_view word : {"True", "False"}) {
      if (text_.starts_with(word)) {
        text_.remove_prefix(word.size());
        return word == "True";
      }
    }
    fail("fortran_order must be True or False");
  }

  std::vector<std::int64_t> shape() {
    std::vector<std::int64_t> sizes;
    expect('(');
    while (!accept(')')) {
      std::int64_t size = -1;
      skip_space();
      const auto [end, error] = std::from_chars(text_.data(), text_.data() + text_.size(), size);
      if (error != std::errc{} || size < 0 || sizes.size() == kMaxDims) {
        fail("shape must be at most 64 integers in 0..2^63-1");
      }
      text_.remove_prefix(static_cast<std::size_t>(end - text_.data()));
      sizes.push_back(size);
      if (!accept(',')) {
        expect(')');
        break;
      }
    }
    return sizes;
  }

  const std::string& source_;
  std::string_view text_;
  std::set<std::string> keys_;
};

// Sets how long the header is and where it starts; throws unless the whole of it is there.
void locate_header(const std::string& source, std::span<const std::byte> file, std::size_t& start,
                   std::size_t& num_bytes) {
  if (file.size() < 10 || std::memcmp(file.data(), kMagic.data(), kMagic.size()) != 0) {
    throw ValueError(source + ": is no .npy file");
  }
  const auto version = little_endian(file, kMagic.size(), 1);
  if (version < 1 || version > 3) {
    throw ValueError(source + ": .npy format " + std::to_string(version) +
                     "; formats 1 to 3 are known");
  }
  const std::size_t width = version == 1 ? 2 : 4;
  start = kMagic.size() + 2 + width;
  num_bytes = file.size() < start ? 0 : little_endian(file, kMagic.size() + 2, width);
  if (file.size() < start || num_bytes > kMaxNpyHeader || num_bytes > file.size() - start) {
    throw ValueError(source + ": the header is truncated");
  }
}

std::string_view numpy_name(const std::string& source, ElementType type) {
  for (const NumpyName& known : kNumpyNames) {
    if (known.type == type) {
      return known.name;
    }
  }
  throw DTypeError(source + ": NumPy has no type " + element_type_name(type));
}

}  // namespace

std::uint64_t little_endian(std::span<const std::byte> bytes, std::size_t offset,
                            std::size_t num_bytes) {
  std::uint64_t value = 0;
  for (std::size_t i = 0; i < num_bytes; ++i) {
    value |= static_cast<std::uint64_t>(bytes[offset + i]) << (8 * i);
  }
  return value;
}

void append_little_endian(std::string& out, std::uint64_t value, std::size_t num_bytes) {
  for (std::size_t i = 0; i < num_bytes; ++i) {
    out += static_cast<char>(value >> (8 * i) & 0xFF);
  }
}

NpyView view_npy(const std::string& source, std::span<const std::byte> file) {
  std::size_t start = 0;
  std::size_t num_bytes = 0;
  locate_header(source, file, start, num_bytes);
  NpyView array;
  const std::string_view text(reinterpret_cast<const char*>(file.data()) + start, num_bytes);
  DictReader(source, text).read(array);
  array.bytes = file.subspan(start + num_bytes);
  const std::optional<std::uint64_t> wanted = tensor_bytes(array.type, array.shape);
  if (!wanted || *wanted != array.bytes.size()) {
    throw ValueError(source + ": has " + std::to_string(array.bytes.size()) + " bytes of data, " +
                     element_type_name(array.type) + " of shape " + shape_text(array.shape) +
                     " needs " + (wanted ? std::to_string(*wanted) : "more than a file can hold"));
  }
  return array;
}

NpyArray parse_npy(const std::string& source, std::span<const std::byte> file) {
  NpyView view = view_npy(source, file);
  NpyArray array{view.type, std::move(view.shape), view.is_fortran, {}};
  array.bytes.assign(view.bytes.begin(), view.bytes.end());
  return array;
}

std::string npy_header(const std::string& source, const NpyArray& array) {
  const std::optional<std::uint64_t> wanted = tensor_bytes(array.type, array.shape);
  if (!wanted || *wanted != array.bytes.size() || array.shape.size() > kMaxDims) {
    throw ValueError(source + ": an array of shape " + shape_text(array.shape) + " of " +
                     element_type_name(array.type) + " cannot have " +
                     std::to_string(array.bytes.size()) + " bytes");
  }
  std::string text = "{'descr': '" + std::string(numpy_name(source, array.type)) +
                     "', 'fortran_order': " + (array.is_fortran ? "True" : "False") +
                     ", 'shape': (";
  for (std::size_t i = 0; i < array.shape.size(); ++i) {
    text += (i == 0 ? "" : " ") + std::to_string(array.shape[i]) +
            (i + 1 < array.shape.size() || i == 0 ? "," : "");
  }
  text += "), }";
  const std::size_t before = kMagic.size() + 4;
  text.append(kAlignment - (before + text.size() + 1) % kAlignment, ' ');
  text += '\n';
  std::string header(kMagic);
  append_little_endian(header, 1, 2);  // format 1.0: 64 sizes need less than 65,536 characters
  append_little_endian(header, text.size(), 2);
  return header + text;
}

NpyArray row_major(const NpyArray& array) {
  NpyArray result{array.type, array.shape, false, array.bytes};
  if (!array.is_fortran || array.shape.size() < 2 || array.bytes.empty()) {
    return result;
  }
  const std::size_t width = element_bits(array.type) / 8;
  const std::size_t rank = array.shape.size();
  std::vector<std::size_t> strides(rank, width);
  for (std::size_t d = 1; d < rank; ++d) {
    strides[d] = strides[d - 1] * static_cast<std::size_t>(array.shape[d - 1]);
  }
  std::vector<std::int64_t> index(array.shape.size(), 0);
  std::size_t from = 0;
  for (std::size_t to = 0; to < array.bytes.size(); to += width) {
    std::memcpy(result.bytes.data() + to, array.bytes.data() + from, width);
    for (std::size_t d = rank; d-- > 0;) {  // the next index in row-major order
      from += strides[d];
      if (++index[d] < array.shape[d]) {
        break;
      }
      from -= strides[d] * static_cast<std::size_t>(array.shape[d]);
      index[d] = 0;
    }
  }
  return result;
}

std::vector<std::byte> read_file(const std::string& path) {
  const InputFile file(path);
  std::vector<std::byte> bytes(file.num_bytes());
  file.read({0, bytes.size(), bytes.data()});
  return bytes;
}

NpyArray read_npy(const std::string& path) { return parse_npy(path, read_file(path)); }

void write_npy(const std::string& path, const NpyArray& array) {
  const std::string header = npy_header(path, array);
  AtomicFile file(path, header.size() + array.bytes.size());
  file.write(0, header.data(), header.size());
  file.write(header.size(), array.bytes.data(), array.bytes.size());
  file.finish();
}

}  // namespace paperlab::io
