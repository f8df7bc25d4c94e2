#pragma once
// Scratch memory of whole cache lines.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>

namespace paperlab::kernels {

struct FreeLines {
  void operator()(std::byte* p) const { ::operator delete[](p, std::align_val_t{64}); }
};
using Lines = std::unique_ptr<std::byte[], FreeLines>;

// Memory that is not written before it is used.
inline Lines take_lines(std::int64_t bytes) {
  return Lines(static_cast<std::byte*>(
      ::operator new[](static_cast<std::size_t>(bytes), std::align_val_t{64})));
}

}  // namespace paperlab::kernels
