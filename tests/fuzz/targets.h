#pragma once
// What the fuzzer calls with any bytes: each reads them as a file, and aborts where what was read
// does not hold together. The same functions run in the unit tests over the corpus.

#include <cstddef>
#include <cstdint>

namespace paperlab::io {

// A safetensors file, or the index of shards if the first byte is '{'.
void fuzz_safetensors(const std::uint8_t* data, std::size_t num_bytes);

// A .npy file, or a .npz archive if the first byte is 'P'.
void fuzz_npy(const std::uint8_t* data, std::size_t num_bytes);

// A config.json, taken as generation_config.json too.
void fuzz_config(const std::uint8_t* data, std::size_t num_bytes);

}  // namespace paperlab::io
