#pragma once
// What cpu.cpp exports once per instruction set: pooling in float32 and bfloat16.

#include <cstddef>

#include "kernels/group_pool/group_pool.h"
#include "kernels/group_pool/tile.h"

namespace paperlab::kernels {

struct GroupPoolCpu {
  // Items begin..end-1 (tile.h). scratch: pool_scratch(...) floats.
  void (*pool)(const GroupPoolInputs& in, const PoolLayout& layout, const GroupPoolOutputs& out,
               std::int64_t begin, std::int64_t end, float* scratch);
  void (*differentiate)(const GroupPoolInputs& in, const PoolLayout& layout,
                        const GroupPoolGradients& gradients, std::int64_t begin, std::int64_t end,
                        float* scratch);
};

// Rows in scratch memory are a multiple of every instruction set's lanes.
constexpr std::int64_t padded_lanes(std::int64_t count) { return (count + 15) / 16 * 16; }

// Four rows and two vectors of a group; backward two gradients of a group's rows besides.
constexpr std::size_t pool_scratch(const PoolLayout& layout, bool is_backward) {
  const std::int64_t width = padded_lanes(layout.head_dim);
  const std::int64_t group = padded_lanes(layout.group);
  return static_cast<std::size_t>(4 * width + 3 * group +
                                  (is_backward ? 2 * layout.group * width : 0));
}

namespace generic {
GroupPoolCpu group_pool_cpu();
}
namespace avx2 {
GroupPoolCpu group_pool_cpu();
}
namespace avx512 {
GroupPoolCpu group_pool_cpu();
}

}  // namespace paperlab::kernels
