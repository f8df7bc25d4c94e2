#pragma once
/// \file
/// Small files of tokens for tests.

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "paperlab/data/tokens.h"
#include "paperlab/io/npy.h"
#include "tests/experiments/scratch.h"

namespace paperlab::data {

/// A vector as a .npy array.
template <class T>
io::NpyArray array_of(io::ElementType type, const std::vector<T>& values) {
  io::NpyArray array{type, {static_cast<std::int64_t>(values.size())}, false, {}};
  array.bytes.resize(values.size() * sizeof(T));
  if (!values.empty()) {
    std::memcpy(array.bytes.data(), values.data(), array.bytes.size());
  }
  return array;
}

/// NAME.npy, uint16, with the tokens i mod 60000, and NAME_documents.npy, opened.
inline std::shared_ptr<const TokenFile> counting_tokens(const experiments::Scratch& scratch,
                                                        const std::string& name,
                                                        std::size_t num_tokens,
                                                        std::vector<std::uint64_t> offsets = {}) {
  std::vector<std::uint16_t> tokens(num_tokens);
  for (std::size_t i = 0; i < num_tokens; ++i) {
    tokens[i] = static_cast<std::uint16_t>(i % 60000);
  }
  if (offsets.empty()) {
    offsets = {0, num_tokens};
  }
  const std::string path = scratch / name;
  io::write_npy(path + ".npy", array_of(io::ElementType::kU16, tokens));
  io::write_npy(path + "_documents.npy", array_of(io::ElementType::kU64, offsets));
  return std::make_shared<const TokenFile>(path + ".npy", path + "_documents.npy", 65536);
}

}  // namespace paperlab::data
