#pragma once
// Raw safetensors files for tests, right and wrong.

#include <gtest/gtest.h>

#include <cstdint>
#include <string>

#include "paperlab/core/error.h"
#include "tests/experiments/scratch.h"

namespace paperlab::io {

using experiments::Scratch;

// Length, header, data.
inline std::string raw_file(const std::string& header, const std::string& data = "") {
  std::string length;
  for (std::size_t i = 0; i < 8; ++i) {
    length += static_cast<char>(std::uint64_t{header.size()} >> (8 * i) & 0xFF);
  }
  return length + header + data;
}

// The header's entry of one tensor.
inline std::string entry(const std::string& name, const std::string& type, const std::string& shape,
                         const std::string& offsets) {
  return '"' + name + R"(":{"dtype":")" + type + R"(","shape":)" + shape + R"(,"data_offsets":)" +
         offsets + '}';
}

}  // namespace paperlab::io
