// The forward pass on Hopper: block_hopper.h by TMA, wgmma and groups with tasks of their own. Code
// for other architectures is empty.
#include "kernels/attention/cuda_hopper.h"

#include "kernels/attention/block_hopper_rows.h"
#include "kernels/attention/cuda_blocks.cuh"
#include "kernels/common/cuda/tma_map.h"

// ptxas-budget hopper_kernel: 168 registers, 0 bytes

namespace paperlab::kernels {
namespace {

// Boxes and matrices elsewhere would be mixed up without a word.
template <class Memory>
__device__ Memory& swizzled_memory() {
  extern __shared__ __align__(kSwizzleBytes) unsigned char swizzled_bytes[];
  unsigned address = shared_address(swizzled_bytes);
  asm volatile("" : "+r"(address));  // else the compiler believes the line above
  if (address % kSwizzleBytes != 0) {
    __trap();
  }
  return *reinterpret_cast<Memory*>(swizzled_bytes);
}

template <class S>
__global__ void __launch_bounds__(S::kThreads, 1)
    hopper_kernel([[maybe_unused]] const __grid_constant__ ForwardLaunch launch,
                  [[maybe_unused]] const __grid_constant__ KeyMaps<TensorMap> maps) {
#ifdef PAPERLAB_SM90A
  auto& memory = swizzled_memory<HopperMemory<S>>();
  DeviceTeam<NoRegisters> team{static_cast<int>(threadIdx.x), {}};
  begin_hopper<S>(team, memory, launch, blockIdx.x, init_barrier);
  const int number = static_cast<int>(threadIdx.x) / kGroup;
  DeviceGroup group{static_cast<int>(threadIdx.x) % kGroup, 1 + number};
  group.converge();
  if (number == 0) {
    shrink_registers<S::kFeederRegisters>();
    feed_readers<S>(group, memory, launch.attention, maps);
  } else {
    grow_registers<S::kReaderRegisters>();
    HopperRegisters<S, DeviceGroup> own;
    read_tiles<S>(group, number - 1, memory, launch, own);
  }
#endif
}

TensorMap key_map(const ConstTensorView& view, int box_rows) {
  return view.data == nullptr || view.size[2] == 0 ? TensorMap{}
                                                   : tensor_map(key_boxes(view, box_rows));
}

template <class S>
void launch_width(const ForwardLaunch& launch, const Context& context) {
  const AttentionInputs& in = launch.attention.in;
  const KeyMaps<TensorMap> maps = {key_map(in.key, S::kKeys), key_map(in.value, S::kKeys),
                                   key_map(in.prefix_key, S::kKeys),
                                   key_map(in.prefix_value, S::kKeys)};
  launch_blocks(hopper_kernel<S>, num_forward_blocks(launch, S::kRows), S::kThreads,
                sizeof(HopperMemory<S>), context, launch, maps);
}

}  // namespace

template <class E>
void launch_hopper(const ForwardLaunch& launch, const Context& context) {
  if (launch.attention.in.query.size[3] <= 64) {
    launch_width<HopperShape<E, 64>>(launch, context);
  } else {
    launch_width<HopperShape<E, 128>>(launch, context);
  }
}

template void launch_hopper<BFloat16>(const ForwardLaunch& launch, const Context& context);
template void launch_hopper<Float16>(const ForwardLaunch& launch, const Context& context);

}  // namespace paperlab::kernels
