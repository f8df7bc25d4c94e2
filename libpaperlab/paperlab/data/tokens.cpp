#include "paperlab/data/tokens.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <utility>

#include "paperlab/core/error.h"

namespace paperlab::data {
namespace {

constexpr std::int64_t kMaxVocabSize = std::int64_t{1} << 32;
constexpr std::size_t kBlock = 64;  // a constant count, which the compiler puts into vectors

// Widens out.size() elements that lie at any address; returns the largest.
template <class T>
std::int64_t widen(const std::byte* from, std::span<std::int64_t> out) {
  T largest = 0;
  std::array<T, kBlock> block;
  for (std::size_t begin = 0; begin < out.size(); begin += kBlock) {
    const std::size_t count = std::min(kBlock, out.size() - begin);
    if (count < kBlock) {
      block.fill(0);
    }
    std::memcpy(block.data(), from + begin * sizeof(T), count * sizeof(T));
    for (std::size_t i = 0; i < kBlock; ++i) {
      largest = std::max(largest, block[i]);
    }
    if (count == kBlock) {
      std::copy_n(block.begin(), kBlock, out.data() + begin);
    } else {
      std::copy_n(block.begin(), count, out.data() + begin);
    }
  }
  return largest;
}

std::int64_t token_bytes(io::ElementType type) {
  return static_cast<std::int64_t>(io::element_bits(type) / 8);
}

void check_vector(const std::string& path, const std::vector<std::int64_t>& shape) {
  if (shape.size() != 1) {
    throw ValueError(path + ": must have one dimension, got " + std::to_string(shape.size()));
  }
}

std::vector<std::int64_t> read_offsets(const std::string& path, std::int64_t num_tokens) {
  const io::NpyArray array = io::read_npy(path);
  check_vector(path, array.shape);
  if (array.type != io::ElementType::kU64) {
    throw DTypeError(path + ": must be U64, got " + io::element_type_name(array.type));
  }
  std::vector<std::int64_t> offsets(static_cast<std::size_t>(array.shape[0]));
  std::uint64_t previous = 0;
  for (std::size_t i = 0; i < offsets.size(); ++i) {
    std::uint64_t offset = 0;
    std::memcpy(&offset, array.bytes.data() + i * sizeof offset, sizeof offset);
    if (offset < previous || offset > static_cast<std::uint64_t>(num_tokens)) {
      throw ValueError(path + ": offset " + std::to_string(i) + " is " + std::to_string(offset) +
                       ", must be in " + std::to_string(previous) + ".." +
                       std::to_string(num_tokens));
    }
    offsets[i] = static_cast<std::int64_t>(offset);
    previous = offset;
  }
  if (offsets.empty() || offsets.front() != 0 || offsets.back() != num_tokens) {
    throw ValueError(path + ": must go from 0 to the number of tokens, " +
                     std::to_string(num_tokens));
  }
  return offsets;
}

}  // namespace

TokenFile::TokenFile(const std::string& tokens_path, const std::string& offsets_path,
                     std::int64_t vocab_size)
    : path_(tokens_path), vocab_size_(vocab_size) {
  require<ValueError>(vocab_size >= 1 && vocab_size <= kMaxVocabSize, "TokenFile",
                      "vocab_size in 1..2^32", std::to_string(vocab_size));
  mapping_ = io::InputFile(path_).map();
  view_ = io::view_npy(path_, {mapping_->data(), mapping_->num_bytes()});
  check_vector(path_, view_.shape);
  if (view_.type != io::ElementType::kU8 && view_.type != io::ElementType::kU16 &&
      view_.type != io::ElementType::kU32) {
    throw DTypeError(path_ + ": tokens must be U8, U16 or U32, got " +
                     io::element_type_name(view_.type));
  }
  offsets_ = read_offsets(offsets_path, num_tokens());
}

void TokenFile::copy(std::int64_t begin, std::span<std::int64_t> out) const {
  const auto count = static_cast<std::int64_t>(out.size());
  require<ValueError>(begin >= 0 && begin <= num_tokens() && count <= num_tokens() - begin,
                      "TokenFile::copy", "tokens of 0.." + std::to_string(num_tokens()),
                      std::to_string(begin) + " and " + std::to_string(count) + " more");
  if (out.empty()) {
    return;
  }
  const std::byte* from = view_.bytes.data() + begin * token_bytes(view_.type);
  std::int64_t largest = 0;
  switch (view_.type) {
    case io::ElementType::kU8:
      largest = widen<std::uint8_t>(from, out);
      break;
    case io::ElementType::kU16:
      largest = widen<std::uint16_t>(from, out);
      break;
    default:
      largest = widen<std::uint32_t>(from, out);
  }
  if (largest >= vocab_size_) {
    throw_first_beyond(begin, out);
  }
}

void TokenFile::throw_first_beyond(std::int64_t begin, std::span<const std::int64_t> out) const {
  const auto bad = std::find_if(out.begin(), out.end(),
                                [&](std::int64_t token) { return token >= vocab_size_; });
  throw ValueError(path_ + ": token at " + std::to_string(begin + (bad - out.begin())) + " is " +
                   std::to_string(*bad) + ", the vocabulary has " + std::to_string(vocab_size_));
}

template <class T>
void byte_tokens(std::span<const std::uint8_t> text, std::span<const std::uint64_t> offsets,
                 const Marks& marks, std::span<T> tokens) {
  const bool is_ordered = !offsets.empty() && std::is_sorted(offsets.begin(), offsets.end());
  require<ValueError>(is_ordered && offsets.back() <= text.size(), "byte_tokens",
                      "offsets in order, at most " + std::to_string(text.size()),
                      std::to_string(offsets.size()) + " others");
  const std::size_t num_marks =
      (marks.before ? std::size_t{1} : 0) + (marks.after ? std::size_t{1} : 0);
  const std::uint64_t wanted = offsets.back() - offsets.front() + (offsets.size() - 1) * num_marks;
  require<ShapeError>(tokens.size() == wanted, "byte_tokens", std::to_string(wanted) + " tokens",
                      std::to_string(tokens.size()));
  for (const std::uint32_t mark : {marks.before.value_or(0), marks.after.value_or(0)}) {
    require<ValueError>(mark <= std::numeric_limits<T>::max(), "byte_tokens",
                        "marks up to " + std::to_string(std::numeric_limits<T>::max()),
                        std::to_string(mark));
  }
  T* out = tokens.data();
  for (std::size_t i = 0; i + 1 < offsets.size(); ++i) {
    if (marks.before) {
      *out++ = static_cast<T>(*marks.before);
    }
    out = std::copy(text.data() + offsets[i], text.data() + offsets[i + 1], out);
    if (marks.after) {
      *out++ = static_cast<T>(*marks.after);
    }
  }
}

template PAPERLAB_API void byte_tokens(std::span<const std::uint8_t>,
                                       std::span<const std::uint64_t>, const Marks&,
                                       std::span<std::uint8_t>);
template PAPERLAB_API void byte_tokens(std::span<const std::uint8_t>,
                                       std::span<const std::uint64_t>, const Marks&,
                                       std::span<std::uint16_t>);

}  // namespace paperlab::data
