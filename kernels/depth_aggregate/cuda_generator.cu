#include <type_traits>

#include "kernels/common/cuda/launch.cuh"
#include "kernels/depth_aggregate/cuda_launch.h"

namespace paperlab::kernels::depth {
namespace {

template <class T>
__global__ void __launch_bounds__(kRowThreads) norm_kernel(const __grid_constant__ NormTask task) {
  DeviceTeam<NormRegisters<T>> team{static_cast<int>(threadIdx.x), {}};
  norm_block<T>(team, task, blockIdx.x);
}

template <class Tile>
__device__ __forceinline__ void multiply_tile(const ProductTask& task) {
  __shared__ ProductMemory<typename Tile::Number> memory;
  DeviceTeam<typename Tile::Registers> team{static_cast<int>(threadIdx.x), {}};
  product_block<Tile>(team, memory, task, blockIdx.x);
}

template <class Tile>
__global__ void __launch_bounds__(kProductThreads)
    product_kernel(const __grid_constant__ ProductTask task) {
  multiply_tile<Tile>(task);
}

// Its numbers take two registers each.
// ptxas-budget double_product_kernel: 232 registers, 49152 bytes
__global__ void __launch_bounds__(kProductThreads)
    double_product_kernel(const __grid_constant__ ProductTask task) {
  multiply_tile<PlainTile<double>>(task);
}

template <class Number>
__global__ void __launch_bounds__(kRowThreads) dot_kernel(const __grid_constant__ DotTask task) {
  DeviceTeam<DotRegisters<Number>> team{static_cast<int>(threadIdx.x), {}};
  dot_block<Number>(team, task, blockIdx.x);
}

template <class Number>
__global__ void __launch_bounds__(kRowThreads)
    column_kernel(const __grid_constant__ ColumnTask task) {
  __shared__ ColumnMemory<Number> memory;
  DeviceTeam<NoRegisters> team{static_cast<int>(threadIdx.x), {}};
  column_block<Number>(team, memory, task, blockIdx.x);
}

}  // namespace

template <class T>
void CudaLaunch::norm(const NormTask& task, std::int64_t num_blocks) const {
  if (num_blocks > 0) {
    norm_kernel<T>
        <<<grid_size(num_blocks, "depth_aggregate_cuda"), kRowThreads, 0, context.stream>>>(task);
    PAPERLAB_CUDA_LAUNCHED(norm_kernel);
  }
}

template <class T>
void CudaLaunch::product(const ProductTask& task, std::int64_t num_blocks) const {
  if (num_blocks == 0) {
    return;
  }
  const unsigned grid = grid_size(num_blocks, "depth_aggregate_cuda");
  if constexpr (sizeof(T) == 8) {
    double_product_kernel<<<grid, kProductThreads, 0, context.stream>>>(task);
  } else {
    using Tile = std::conditional_t<sizeof(T) == 2, TensorTile, PlainTile<float>>;
    product_kernel<Tile><<<grid, kProductThreads, 0, context.stream>>>(task);
  }
  PAPERLAB_CUDA_LAUNCHED(product_kernel);
}

template <class Number>
void CudaLaunch::dots(const DotTask& task, std::int64_t num_blocks) const {
  if (num_blocks > 0) {
    dot_kernel<Number>
        <<<grid_size(num_blocks, "depth_aggregate_cuda"), kRowThreads, 0, context.stream>>>(task);
    PAPERLAB_CUDA_LAUNCHED(dot_kernel);
  }
}

template <class Number>
void CudaLaunch::columns(const ColumnTask& task, std::int64_t num_blocks) const {
  if (num_blocks > 0) {
    column_kernel<Number>
        <<<grid_size(num_blocks, "depth_aggregate_cuda"), kRowThreads, 0, context.stream>>>(task);
    PAPERLAB_CUDA_LAUNCHED(column_kernel);
  }
}

void CudaLaunch::zero(void* data, std::int64_t num_bytes) const {
  PAPERLAB_CUDA_CHECK(
      cudaMemsetAsync(data, 0, static_cast<std::size_t>(num_bytes), context.stream));
}

template void CudaLaunch::norm<float>(const NormTask&, std::int64_t) const;
template void CudaLaunch::norm<BFloat16>(const NormTask&, std::int64_t) const;
template void CudaLaunch::norm<Float16>(const NormTask&, std::int64_t) const;
template void CudaLaunch::norm<double>(const NormTask&, std::int64_t) const;
template void CudaLaunch::product<float>(const ProductTask&, std::int64_t) const;
template void CudaLaunch::product<BFloat16>(const ProductTask&, std::int64_t) const;
template void CudaLaunch::product<Float16>(const ProductTask&, std::int64_t) const;
template void CudaLaunch::product<double>(const ProductTask&, std::int64_t) const;
template void CudaLaunch::dots<float>(const DotTask&, std::int64_t) const;
template void CudaLaunch::dots<double>(const DotTask&, std::int64_t) const;
template void CudaLaunch::columns<float>(const ColumnTask&, std::int64_t) const;
template void CudaLaunch::columns<double>(const ColumnTask&, std::int64_t) const;

}  // namespace paperlab::kernels::depth
