// Attention in float32 and float64: the blocks of block_plain.h and block_plain_backward.h.
#include "kernels/attention/cuda_blocks.cuh"
#include "kernels/attention/cuda_shapes.h"

// ptxas-budget plain_forward_kernel: 128 registers, 0 bytes
// ptxas-budget plain_key_kernel: 184 registers, 0 bytes
// ptxas-budget plain_query_kernel: 255 registers, 0 bytes

namespace paperlab::kernels {
namespace {

template <class S>
__global__ void __launch_bounds__(S::kThreads)
    plain_forward_kernel(const __grid_constant__ ForwardLaunch launch) {
  DeviceTeam<PlainForwardRegisters<S>> team{static_cast<int>(threadIdx.x), {}};
  plain_forward_block<S>(team, block_memory<PlainForwardMemory<S>>(), launch,
                         forward_task(launch, blockIdx.x, S::kEdge));
}

template <class S>
__global__ void __launch_bounds__(S::kThreads)
    plain_key_kernel(const __grid_constant__ BackwardLaunch launch) {
  DeviceTeam<PlainKeyRegisters<S>> team{static_cast<int>(threadIdx.x), {}};
  plain_key_block<S>(team, block_memory<PlainBackwardMemory<S>>(), launch,
                     key_task(launch.attention, blockIdx.x, S::kEdge));
}

template <class S>
__global__ void __launch_bounds__(S::kThreads)
    plain_query_kernel(const __grid_constant__ BackwardLaunch launch) {
  DeviceTeam<PlainQueryRegisters<S>> team{static_cast<int>(threadIdx.x), {}};
  plain_query_block<S>(team, block_memory<PlainBackwardMemory<S>>(), launch,
                       row_tile(launch.attention, blockIdx.x, S::kEdge));
}

template <class S>
void launch_forward_of(const ForwardLaunch& launch, const Context& context) {
  launch_blocks(plain_forward_kernel<S>, num_forward_blocks(launch, S::kEdge), S::kThreads,
                sizeof(PlainForwardMemory<S>), context, launch);
}

template <class S>
void launch_backward_of(const BackwardLaunch& launch, const Context& context) {
  launch_blocks(plain_key_kernel<S>, num_key_tasks(launch.attention.in, S::kEdge), S::kThreads,
                sizeof(PlainBackwardMemory<S>), context, launch);
  launch_blocks(plain_query_kernel<S>, num_row_tiles(launch.attention, S::kEdge), S::kThreads,
                sizeof(PlainBackwardMemory<S>), context, launch);
}

}  // namespace

void launch_plain_forward(const ForwardLaunch& launch, const Context& context) {
  const ConstTensorView& query = launch.attention.in.query;
  with_plain_forward_shape(query.dtype, query.size[3], [&](auto shape) {
    launch_forward_of<typename decltype(shape)::Type>(launch, context);
  });
}

void launch_plain_backward(const BackwardLaunch& launch, const Context& context) {
  const ConstTensorView& query = launch.attention.in.query;
  with_plain_backward_shape(query.dtype, query.size[3], [&](auto shape) {
    launch_backward_of<typename decltype(shape)::Type>(launch, context);
  });
}

}  // namespace paperlab::kernels
