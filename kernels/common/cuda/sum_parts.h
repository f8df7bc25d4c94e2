#pragma once
// The last step of a sum that blocks began: parts [P, W] to sums [W], in an order that is a
// function of P alone. Slice s adds up the parts s, s + kPartSlices, ...; the slices are added in
// order.

#include "kernels/common/cuda/elements.h"

namespace paperlab::kernels {

constexpr int kPartColumns = 32;
constexpr int kPartSlices = 16;
constexpr int kPartThreads = kPartColumns * kPartSlices;

template <class T>
struct PartMemory {
  NumberOf<T> slices[kPartSlices][kPartColumns];
};

PAPERLAB_HD constexpr std::int64_t num_part_blocks(std::int64_t width) {
  return (width + kPartColumns - 1) / kPartColumns;
}

// Columns kPartColumns block .. of `to`; a team of kPartThreads.
template <class T, class AnyTeam>
PAPERLAB_HD void sum_parts_block(AnyTeam& team, PartMemory<T>& memory, const NumberOf<T>* parts,
                                 std::int64_t num_parts, std::int64_t width, std::int64_t block,
                                 T* to) {
  team.each([&](int thread, auto&) {
    const std::int64_t column = block * kPartColumns + thread % kPartColumns;
    NumberOf<T> sum = 0;
    if (column < width) {
#ifdef __CUDA_ARCH__
#pragma unroll 4
#endif
      for (std::int64_t part = thread / kPartColumns; part < num_parts; part += kPartSlices) {
        sum += parts[part * width + column];
      }
    }
    memory.slices[thread / kPartColumns][thread % kPartColumns] = sum;
  });
  team.each_alone([&](int thread, auto&) {
    const std::int64_t column = block * kPartColumns + thread;
    if (thread < kPartColumns && column < width) {
      NumberOf<T> sum = memory.slices[0][thread];
      for (int slice = 1; slice < kPartSlices; ++slice) {
        sum += memory.slices[slice][thread];
      }
      to[column] = to_element<T>(sum);
    }
  });
}

}  // namespace paperlab::kernels
