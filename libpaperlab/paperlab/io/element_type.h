#pragma once
/// \file
/// The element types of the safetensors format.

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "paperlab/core/export.h"

namespace paperlab::io {

/// In the format's own order, in which no type is wider than a later one. F4 and F6 are packed.
enum class ElementType : std::uint8_t {
  kBool,
  kF4,
  kF6E2M3,
  kF6E3M2,
  kU8,
  kI8,
  kF8E5M2,
  kF8E4M3,
  kF8E8M0,
  kF8E4M3Fnuz,
  kF8E5M2Fnuz,
  kI16,
  kU16,
  kF16,
  kBF16,
  kI32,
  kU32,
  kF32,
  kC64,
  kF64,
  kI64,
  kU64,
};

/// `BF16`, `F8_E4M3`, ... as it stands in files.
PAPERLAB_API const char* element_type_name(ElementType type);

/// The type of that name, if there is one.
PAPERLAB_API std::optional<ElementType> find_element_type(std::string_view name);

/// All names, separated by ", ".
PAPERLAB_API std::string element_type_names();

/// Bits of one element: 4 to 64. A BOOL is a byte.
PAPERLAB_API std::uint64_t element_bits(ElementType type);

/// The bytes of a tensor of this shape; nothing if they or the product of the non-zero sizes is
/// above 2^63 - 1, if a size is negative, or if packed elements do not fill whole bytes.
PAPERLAB_API std::optional<std::uint64_t> tensor_bytes(ElementType type,
                                                       const std::vector<std::int64_t>& shape);

}  // namespace paperlab::io
