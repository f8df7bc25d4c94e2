// Even pairs without a plan: block_even_pairs.h.
#include <string>

#include "kernels/common/cuda/check.cuh"
#include "kernels/one_layer_fold/block_even_pairs.h"
#include "kernels/one_layer_fold/cuda.h"

namespace paperlab::kernels {
namespace {

__global__ void __launch_bounds__(kSumEntries)
    even_pairs_tables_kernel(const __grid_constant__ EvenPairsLaunch launch) {
  write_table(launch, static_cast<int>(blockIdx.x), static_cast<int>(threadIdx.x));
}

// The longest tasks start first.
__device__ int task_number() { return static_cast<int>(gridDim.x - 1 - blockIdx.x); }

// A group has values of its own from the start, which shared memory cannot have.
template <class Memory>
__device__ EvenPairsShared<Memory>& shared_memory() {
  __shared__ alignas(EvenPairsShared<Memory>) unsigned char bytes[sizeof(EvenPairsShared<Memory>)];
  return *reinterpret_cast<EvenPairsShared<Memory>*>(bytes);
}

template <bool kEvaluates>
__global__ void __launch_bounds__(kBlockThreads)
    even_pairs_kernel(const __grid_constant__ EvenPairsLaunch launch) {
  DeviceTeam<FoldRegisters> team{static_cast<int>(threadIdx.x), {}};
  if constexpr (kEvaluates) {
    even_pairs_evaluate_block(team, shared_memory<FoldMemory>(), launch, task_number());
  } else {
    even_pairs_block(team, shared_memory<FoldMemory>(), launch, task_number());
  }
}

template <bool kEvaluates>
__global__ void __launch_bounds__(kBlockThreads)
    even_pairs_wide_kernel(const __grid_constant__ EvenPairsLaunch launch) {
  DeviceTeam<WideRegisters> team{static_cast<int>(threadIdx.x), {}};
  if constexpr (kEvaluates) {
    even_pairs_wide_evaluate_block(team, shared_memory<WideMemory>(), launch, task_number());
  } else {
    even_pairs_wide_block(team, shared_memory<WideMemory>(), launch, task_number());
  }
}

__global__ void __launch_bounds__(kSumThreads)
    sum_even_pairs_kernel(const __grid_constant__ EvenPairsLaunch launch, double* gradient_w) {
  __shared__ QuerySums sums;
  DeviceTeam<NoRegisters> team{static_cast<int>(threadIdx.x), {}};
  sum_even_pairs(team, sums, launch, static_cast<int>(blockIdx.x), gradient_w);
}

// Tables and tasks of a gradient or an evaluation.
template <bool kEvaluates>
EvenPairsLaunch launch_tasks(const OneLayerParameters& parameters, void* workspace,
                             const Context& context) {
  const int max_length = parameters.max_length;
  const EvenPairsLaunch launch{parameters, even_pairs_memory(max_length, workspace)};
  const auto columns = static_cast<unsigned>(2 * max_length);
  const auto tasks = static_cast<unsigned>(num_even_pairs_tasks(max_length));
  even_pairs_tables_kernel<<<columns, kSumEntries, 0, context.stream>>>(launch);
  PAPERLAB_CUDA_LAUNCHED(even_pairs_tables_kernel);
  even_pairs_kernel<kEvaluates><<<tasks, kBlockThreads, 0, context.stream>>>(launch);
  PAPERLAB_CUDA_LAUNCHED(even_pairs_kernel);
  even_pairs_wide_kernel<kEvaluates><<<tasks, kBlockThreads, 0, context.stream>>>(launch);
  PAPERLAB_CUDA_LAUNCHED(even_pairs_wide_kernel);
  return launch;
}

void check_max_length(int max_length) {
  require<ShapeError>(max_length >= 1 && max_length <= kMaxStringLength, "even_pairs_cuda",
                      "max_length must be in 1.." + std::to_string(kMaxStringLength),
                      std::to_string(max_length));
}

}  // namespace

std::int64_t even_pairs_cuda_workspace(int max_length) {
  check_max_length(max_length);
  return even_pairs_bytes(max_length);
}

void even_pairs_cuda(const OneLayerParameters& parameters, const OneLayerGradient& gradient,
                     void* workspace, const Context& context) {
  check_max_length(parameters.max_length);
  const EvenPairsLaunch launch = launch_tasks<false>(parameters, workspace, context);
  const int width = 2 * parameters.max_length;
  sum_even_pairs_kernel<<<static_cast<unsigned>(width), kSumThreads, 0, context.stream>>>(
      launch, gradient.w);
  PAPERLAB_CUDA_LAUNCHED(sum_even_pairs_kernel);
  launch_u_gradient(launch.memory.parts_of_u, parameters.max_length, width, gradient.u, context);
}

void even_pairs_evaluate_cuda(const OneLayerParameters& parameters, OneLayerEvaluation* out,
                              void* workspace, const Context& context) {
  check_max_length(parameters.max_length);
  const EvenPairsLaunch launch = launch_tasks<true>(parameters, workspace, context);
  launch_evaluation_sum(launch.memory.evaluations, num_even_pairs_tasks(parameters.max_length),
                        (std::int64_t{2} << static_cast<unsigned>(parameters.max_length)) - 2, out,
                        context);
}

}  // namespace paperlab::kernels
