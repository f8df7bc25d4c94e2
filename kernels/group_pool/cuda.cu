#include "kernels/group_pool/cuda.h"

#include "kernels/common/cuda/launch.cuh"
#include "kernels/group_pool/block_rest.h"

namespace paperlab::kernels {
namespace {

constexpr int kPoolThreads = kPoolWarps * kWarp;
// A warp's loads in flight are its registers, so few blocks fill the memory's queue.
template <class T>
constexpr int kPoolBlocks = sizeof(T) == 8 ? 2 : 3;  // of a multiprocessor, at least

// ptxas-budget group_pool_kernel: 200 registers, 0 bytes
// ptxas-budget pool_weights_kernel: 200 registers, 0 bytes
// ptxas-budget pool_spread_kernel: 200 registers, 0 bytes
// ptxas-budget pool_max_kernel: 168 registers, 0 bytes

__device__ std::int64_t warp_number() {
  return static_cast<std::int64_t>(blockIdx.x) * kPoolWarps + threadIdx.x / kWarp;
}
template <class R>
__device__ DeviceWarp<R> this_warp() {
  return {static_cast<int>(threadIdx.x % kWarp), {}};
}

template <class T>
__global__ void __launch_bounds__(kPoolThreads, kPoolBlocks<T>)
    group_pool_kernel(GroupPoolInputs in, PoolPlan plan, GroupPoolOutputs out,
                      std::int64_t num_warps) {
  if (warp_number() < num_warps) {
    auto team = this_warp<PoolRegisters<T>>();
    pool_warp<T>(team, in, plan, out, warp_number());
  }
}

template <class T>
__global__ void __launch_bounds__(kPoolThreads, kPoolBlocks<T>)
    pool_weights_kernel(GroupPoolInputs in, PoolPlan plan, GroupPoolGradients of,
                        std::int64_t num_warps, NumberOf<T>* scratch) {
  if (warp_number() < num_warps) {
    auto team = this_warp<PoolGradRegisters<T>>();
    pool_weights_warp<T>(team, in, plan, of, warp_number(), scratch);
  }
}

template <class T>
__global__ void __launch_bounds__(kPoolThreads, kPoolBlocks<T>)
    pool_spread_kernel(GroupPoolInputs in, PoolPlan plan, GroupPoolGradients of,
                       std::int64_t num_warps, const NumberOf<T>* scratch) {
  if (warp_number() < num_warps) {
    auto team = this_warp<PoolSpreadRegisters<T>>();
    pool_spread_warp<T>(team, in, plan, of, warp_number(), scratch);
  }
}

template <class T>
__global__ void __launch_bounds__(kPoolThreads, kPoolBlocks<T>)
    pool_max_kernel(GroupPoolInputs in, PoolPlan plan, GroupPoolGradients of,
                    std::int64_t num_warps) {
  if (warp_number() < num_warps) {
    auto team = this_warp<PoolMaxRegisters<T>>();
    pool_max_warp<T>(team, in, plan, of, warp_number());
  }
}

template <class T>
__global__ void __launch_bounds__(kPoolThreads)
    pool_clear_kernel(PoolPlan plan, GroupPoolGradients of, std::int64_t num_warps) {
  if (warp_number() < num_warps) {
    auto team = this_warp<NoRegisters>();
    pool_clear_warp<T>(team, plan, of, warp_number());
  }
}

unsigned num_blocks(std::int64_t num_warps) {
  return grid_size((num_warps + kPoolWarps - 1) / kPoolWarps, "group_pool");
}

template <class T>
void run_forward(const GroupPoolInputs& in, const GroupPoolOutputs& out, const Context& context) {
  const PoolPlan plan = pool_plan<T>(in, out);
  const std::int64_t warps = num_pool_warps(plan.layout);
  if (warps > 0) {
    group_pool_kernel<T>
        <<<num_blocks(warps), kPoolThreads, 0, context.stream>>>(in, plan, out, warps);
    PAPERLAB_CUDA_LAUNCHED(group_pool_kernel);
  }
}

// Gradients of keys and values of the groups; those of the evaluators besides.
template <class T>
void run_groups(const GroupPoolInputs& in, const PoolPlan& plan, const GroupPoolGradients& of,
                NumberOf<T>* scratch, const Context& context) {
  const std::int64_t warps = num_pool_warps(plan.layout);
  const unsigned blocks = num_blocks(warps);
  if (plan.kind == PoolKind::kMax) {
    pool_max_kernel<T><<<blocks, kPoolThreads, 0, context.stream>>>(in, plan, of, warps);
    PAPERLAB_CUDA_LAUNCHED(pool_max_kernel);
    return;
  }
  if (plan.kind == PoolKind::kAttention) {
    pool_weights_kernel<T>
        <<<blocks, kPoolThreads, 0, context.stream>>>(in, plan, of, warps, scratch);
    PAPERLAB_CUDA_LAUNCHED(pool_weights_kernel);
  }
  const std::int64_t spread_warps = num_spread_warps(plan);
  pool_spread_kernel<T><<<num_blocks(spread_warps), kPoolThreads, 0, context.stream>>>(
      in, plan, of, spread_warps, scratch);
  PAPERLAB_CUDA_LAUNCHED(pool_spread_kernel);
}

template <class T>
void run_backward(const GroupPoolInputs& in, const GroupPoolGradients& of, void* workspace,
                  const Context& context) {
  // Clearing moves bits alone.
  using Bits = std::conditional_t<sizeof(T) == 2, BFloat16, T>;
  const PoolPlan plan = pool_plan<T>(in, of);
  if (num_pool_warps(plan.layout) > 0) {
    run_groups<T>(in, plan, of, static_cast<NumberOf<T>*>(workspace), context);
  }
  const std::int64_t warps = num_clear_warps<Bits>(plan);
  if (warps > 0) {
    pool_clear_kernel<Bits>
        <<<num_blocks(warps), kPoolThreads, 0, context.stream>>>(plan, of, warps);
    PAPERLAB_CUDA_LAUNCHED(pool_clear_kernel);
  }
}

}  // namespace

std::int64_t group_pool_cuda_workspace(const GroupPoolInputs&, const GroupPoolOutputs&) {
  return 0;
}

std::int64_t group_pool_backward_cuda_workspace(const GroupPoolInputs& inputs,
                                                const GroupPoolGradients& gradients) {
  if (inputs.kind != PoolKind::kAttention) {
    return 0;
  }
  const PoolLayout layout =
      pool_layout(inputs, gradients.grad_key.size[1], gradients.grad_key.size[2]);
  const std::int64_t size = inputs.key.dtype == DType::kFloat64 ? 8 : 4;
  return (weights_at(layout, num_pool_warps(layout)) * size + 15) / 16 * 16;
}

void group_pool_cuda(const GroupPoolInputs& inputs, const GroupPoolOutputs& outputs, void*,
                     const Context& context) {
  check_group_pool(inputs, outputs);
  with_element(inputs.key.dtype, [&](auto element) {
    run_forward<typename decltype(element)::Type>(inputs, outputs, context);
  });
}

void group_pool_backward_cuda(const GroupPoolInputs& inputs, const GroupPoolGradients& gradients,
                              void* workspace, const Context& context) {
  check_group_pool_backward(inputs, gradients);
  with_element(inputs.key.dtype, [&](auto element) {
    run_backward<typename decltype(element)::Type>(inputs, gradients, workspace, context);
  });
}

}  // namespace paperlab::kernels
