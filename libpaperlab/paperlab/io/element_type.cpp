#include "paperlab/io/element_type.h"

#include <limits>

namespace paperlab::io {
namespace {

struct Description {
  ElementType type;
  const char* name;
  std::uint64_t bits;
};

constexpr Description kDescriptions[] = {
    {ElementType::kBool, "BOOL", 8},
    {ElementType::kF4, "F4", 4},
    {ElementType::kF6E2M3, "F6_E2M3", 6},
    {ElementType::kF6E3M2, "F6_E3M2", 6},
    {ElementType::kU8, "U8", 8},
    {ElementType::kI8, "I8", 8},
    {ElementType::kF8E5M2, "F8_E5M2", 8},
    {ElementType::kF8E4M3, "F8_E4M3", 8},
    {ElementType::kF8E8M0, "F8_E8M0", 8},
    {ElementType::kF8E4M3Fnuz, "F8_E4M3FNUZ", 8},
    {ElementType::kF8E5M2Fnuz, "F8_E5M2FNUZ", 8},
    {ElementType::kI16, "I16", 16},
    {ElementType::kU16, "U16", 16},
    {ElementType::kF16, "F16", 16},
    {ElementType::kBF16, "BF16", 16},
    {ElementType::kI32, "I32", 32},
    {ElementType::kU32, "U32", 32},
    {ElementType::kF32, "F32", 32},
    {ElementType::kC64, "C64", 64},
    {ElementType::kF64, "F64", 64},
    {ElementType::kI64, "I64", 64},
    {ElementType::kU64, "U64", 64},
};

constexpr bool is_in_order() {
  int number = 0;
  for (const Description& description : kDescriptions) {
    if (static_cast<int>(description.type) != number++) {
      return false;
    }
  }
  return true;
}
static_assert(is_in_order());

const Description& describe(ElementType type) {
  return kDescriptions[static_cast<std::size_t>(type)];
}

}  // namespace

const char* element_type_name(ElementType type) { return describe(type).name; }

std::uint64_t element_bits(ElementType type) { return describe(type).bits; }

std::optional<ElementType> find_element_type(std::string_view name) {
  for (const Description& description : kDescriptions) {
    if (name == description.name) {
      return description.type;
    }
  }
  return std::nullopt;
}

std::string element_type_names() {
  std::string names;
  for (const Description& description : kDescriptions) {
    names += (names.empty() ? "" : ", ") + std::string(description.name);
  }
  return names;
}

// The bound on the non-zero sizes lets users multiply strides of empty tensors too.
std::optional<std::uint64_t> tensor_bytes(ElementType type,
                                          const std::vector<std::int64_t>& shape) {
  constexpr std::int64_t kMax = std::numeric_limits<std::int64_t>::max();
  const auto bits = static_cast<std::int64_t>(element_bits(type));
  bool is_empty = false;
  std::int64_t product = 1;
  for (const std::int64_t size : shape) {
    is_empty = is_empty || size == 0;
    if (size < 0 || (size > 0 && __builtin_mul_overflow(product, size, &product))) {
      return std::nullopt;
    }
  }
  if (bits >= 8) {
    const std::int64_t width = bits / 8;
    if (product > kMax / width) {
      return std::nullopt;
    }
    return is_empty ? 0 : static_cast<std::uint64_t>(product * width);
  }
  if (product > kMax / bits || (!is_empty && product * bits % 8 != 0)) {
    return std::nullopt;
  }
  return is_empty ? 0 : static_cast<std::uint64_t>(product * bits / 8);
}

}  // namespace paperlab::io
