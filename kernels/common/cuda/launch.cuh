#pragma once
// Sizes of a launch.

#include <string>

#include "kernels/common/cuda/check.cuh"

namespace paperlab::kernels {

// A one-dimensional grid. Throws ShapeError beyond 2^31 - 1 blocks.
inline unsigned grid_size(std::int64_t num_blocks, const char* function) {
  if (num_blocks < 0 || num_blocks > 0x7FFFFFFF) {
    throw ShapeError(std::string(function) + ": at most 2^31 - 1 blocks fit into a grid, got " +
                     std::to_string(num_blocks));
  }
  return static_cast<unsigned>(num_blocks);
}

}  // namespace paperlab::kernels
