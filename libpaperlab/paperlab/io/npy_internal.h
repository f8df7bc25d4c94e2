#pragma once
// What .npy and .npz share.

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "paperlab/io/file.h"
#include "paperlab/io/npy.h"

namespace paperlab::io {

// Little-endian number of `num_bytes` bytes at `offset`, which the caller has checked.
std::uint64_t little_endian(std::span<const std::byte> bytes, std::size_t offset,
                            std::size_t num_bytes);
void append_little_endian(std::string& out, std::uint64_t value, std::size_t num_bytes);

// Magic, version, header: what stands before an array's bytes. A multiple of 64 bytes.
std::string npy_header(const std::string& source, const NpyArray& array);

std::vector<std::byte> read_file(const std::string& path);

}  // namespace paperlab::io
