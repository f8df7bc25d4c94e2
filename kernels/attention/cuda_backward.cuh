#pragma once
// The backward pass by tensor cores, for one type of elements (cuda_backward_*.cu).

#include "kernels/attention/cuda_blocks.cuh"
#include "kernels/attention/cuda_shapes.h"

namespace paperlab::kernels {

template <class S>
__global__ void __launch_bounds__(kBlockLanes, 1)
    key_kernel(const __grid_constant__ BackwardLaunch launch) {
  DeviceWarps<KeyRegisters<S, DeviceLanes>> team{static_cast<int>(threadIdx.x), {}};
  key_block<S>(team, block_memory<KeyMemory<S>>(), launch, blockIdx.x);
}

template <class S>
__global__ void __launch_bounds__(kBlockLanes, 1)
    query_kernel(const __grid_constant__ BackwardLaunch launch) {
  DeviceWarps<QueryRegisters<S, DeviceLanes>> team{static_cast<int>(threadIdx.x), {}};
  query_block<S>(team, block_memory<QueryMemory<S>>(), launch, blockIdx.x);
}

template <class S>
void launch_keys(const BackwardLaunch& launch, const Context& context) {
  launch_blocks(key_kernel<S>, num_key_tasks(launch.attention.in, kOwnRows), kBlockLanes,
                sizeof(KeyMemory<S>), context, launch);
}

template <class S>
void launch_queries(const BackwardLaunch& launch, const Context& context) {
  launch_blocks(query_kernel<S>, num_row_tiles(launch.attention, kOwnRows), kBlockLanes,
                sizeof(QueryMemory<S>), context, launch);
}

template <class E>
void launch_backward(const BackwardLaunch& launch, const Context& context) {
  with_backward_shapes<E>(
      launch.attention.in.query.size[3],
      [&](auto shape) { launch_keys<typename decltype(shape)::Type>(launch, context); },
      [&](auto shape) { launch_queries<typename decltype(shape)::Type>(launch, context); });
}

}  // namespace paperlab::kernels
