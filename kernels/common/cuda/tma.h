#pragma once
// Boxes of a tensor that the copy engine brings to shared memory (TMA, sm_90), as rows of 128 bytes
// whose 16-byte chunks are swizzled. Tensors are [batch, heads, rows, columns] of 16-bit elements
// with neighbouring columns; what of a box lies outside its tensor arrives as zeros.

#include <cstdint>
#include <cstring>

#include "kernels/common/cuda/mbarrier.h"
#include "kernels/common/tensor_view.h"

namespace paperlab::kernels {

constexpr int kBoxColumns = 64;
constexpr int kBoxRowBytes = 2 * kBoxColumns;
constexpr int kSwizzleBytes = 1024;  // tiles begin at multiples: the pattern is one of addresses

// The copy engine and the matrix units exchange address bits 4..6 by their xor with bits 7..9.
PAPERLAB_HD constexpr std::uint32_t swizzled(std::uint32_t address) {
  return address ^ (address >> 7U & 7U) << 4U;
}

struct BoxTensor {
  const void* data;
  DType dtype;
  std::uint64_t size[4];    // columns, rows, heads, batch
  std::uint64_t stride[3];  // of rows, heads and batch rows, in bytes: multiples of 16
  std::uint32_t box_rows;   // at most 256
};

// A box's first element.
struct BoxPlace {
  int column;
  int row;
  int head;
  int batch;
};

// What the copy engine is told of a BoxTensor (tma_map.h); opaque.
struct alignas(64) TensorMap {
  std::uint64_t word[16];
};

// Begins the copy of a box to `to`, a multiple of 1024 bytes; its bytes arrive at `barrier`.
PAPERLAB_HD inline void fetch_box([[maybe_unused]] const TensorMap& map,
                                  [[maybe_unused]] const BoxPlace& at, [[maybe_unused]] void* to,
                                  [[maybe_unused]] Barrier& barrier) {
#ifdef PAPERLAB_SM90A
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], "
      "[%1, {%3, %4, %5, %6}], [%2];" ::"r"(shared_address(to)),
      "l"(&map), "r"(shared_address(&barrier)), "r"(at.column), "r"(at.row), "r"(at.head),
      "r"(at.batch)
      : "memory");
#endif
}

// What this thread wrote to shared memory is seen by copies and products that begin after the next
// barrier of threads.
PAPERLAB_HD inline void show_writes() {
#ifdef PAPERLAB_SM90A
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

// The same copy on the host; `address`: of `to` in the block's memory.
inline void fetch_box_host(const BoxTensor& from, const BoxPlace& at, std::uint16_t* to,
                           std::uint32_t address) {
  const auto has = [](std::int64_t place, std::uint64_t size) {
    return place >= 0 && static_cast<std::uint64_t>(place) < size;
  };
  const bool is_there = has(at.head, from.size[2]) && has(at.batch, from.size[3]);
  for (std::uint32_t i = 0; i < from.box_rows * kBoxColumns; ++i) {
    const std::int64_t row = std::int64_t{at.row} + i / kBoxColumns;
    const std::int64_t column = std::int64_t{at.column} + i % kBoxColumns;
    std::uint16_t element = 0;
    if (is_there && has(row, from.size[1]) && has(column, from.size[0])) {
      const std::int64_t byte = 2 * column + row * static_cast<std::int64_t>(from.stride[0]) +
                                at.head * static_cast<std::int64_t>(from.stride[1]) +
                                at.batch * static_cast<std::int64_t>(from.stride[2]);
      std::memcpy(&element, static_cast<const char*>(from.data) + byte, sizeof(element));
    }
    to[(swizzled(address + 2 * i) - address) / 2] = element;
  }
}

}  // namespace paperlab::kernels
