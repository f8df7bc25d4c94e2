#pragma once
// The forward pass by tensor cores, for one type of elements (cuda_forward_*.cu).

#include "kernels/attention/block_forward.h"
#include "kernels/attention/cuda_blocks.cuh"
#include "kernels/attention/cuda_launch.h"

namespace paperlab::kernels {

template <class S>
__global__ void __launch_bounds__(kBlockLanes, 1)
    forward_kernel(const __grid_constant__ ForwardLaunch launch) {
  DeviceWarps<ForwardRegisters<S, DeviceLanes>> team{static_cast<int>(threadIdx.x), {}};
  forward_block<S>(team, block_memory<ForwardMemory<S>>(), launch, blockIdx.x);
}

template <class S>
void launch_forward_of(const ForwardLaunch& launch, const Context& context) {
  launch_blocks(forward_kernel<S>, num_forward_blocks(launch, S::kRows), kBlockLanes,
                sizeof(ForwardMemory<S>), context, launch);
}

template <class E, int kWidth>
void launch_forward_width(const ForwardLaunch& launch, const Context& context) {
  if (launch.partials != nullptr) {
    launch_forward_of<DecodeShape<E, kWidth>>(launch, context);
  } else {
    launch_forward_of<TileShape<E, kWidth>>(launch, context);
  }
}

template <class E>
void launch_forward(const ForwardLaunch& launch, const Context& context) {
  switch (padded_width(launch.attention.in.query.size[3])) {
    case 64:
      return launch_forward_width<E, 64>(launch, context);
    case 128:
      return launch_forward_width<E, 128>(launch, context);
    default:
      return launch_forward_width<E, 256>(launch, context);
  }
}

}  // namespace paperlab::kernels
