#pragma once
// One way to launch attention's blocks.

#include <cuda_runtime.h>

#include "kernels/common/cuda/architecture.h"
#include "kernels/common/cuda/check.cuh"
#include "kernels/common/cuda/context.h"
#include "paperlab/core/error.h"

namespace paperlab::kernels {

// The block's memory, however large.
template <class Memory>
__device__ Memory& block_memory() {
  extern __shared__ uint4 block_bytes[];
  return *reinterpret_cast<Memory*>(block_bytes);
}

// num_blocks blocks with `bytes` of shared memory each. Throws UnsupportedError if the device has
// fewer for a block.
template <class Kernel, class... Arguments>
void launch_blocks(Kernel kernel, std::int64_t num_blocks, int num_threads, std::size_t bytes,
                   const Context& context, const Arguments&... arguments) {
  if (num_blocks == 0) {
    return;
  }
  require<ShapeError>(num_blocks < std::int64_t{1} << 31, "attention_cuda",
                      "at most 2^31 - 1 blocks of work", std::to_string(num_blocks));
  if (static_cast<std::int64_t>(bytes) > kPlainSharedMemory) {
    check_shared_memory("attention_cuda", static_cast<std::int64_t>(bytes), current_device_facts());
    PAPERLAB_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                             static_cast<int>(bytes)));
  }
  kernel<<<static_cast<unsigned>(num_blocks), static_cast<unsigned>(num_threads), bytes,
           context.stream>>>(arguments...);
  PAPERLAB_CUDA_LAUNCHED(attention);
}

}  // namespace paperlab::kernels
