#include "kernels/common/cuda/launch.cuh"
#include "kernels/depth_aggregate/cuda_launch.h"

namespace paperlab::kernels::depth {
namespace {

template <class T>
__global__ void __launch_bounds__(kSumThreads, 2)
    gradient_kernel(const __grid_constant__ GradientTask task) {
  __shared__ GradientMemory<T> memory;
  DeviceTeam<GradientRegisters<T>> team{static_cast<int>(threadIdx.x), {}};
  gradient_block<T>(team, memory, task, blockIdx.x);
}

}  // namespace

template <class T>
void CudaLaunch::gradient(const GradientTask& task, std::int64_t num_blocks) const {
  if (num_blocks > 0) {
    gradient_kernel<T>
        <<<grid_size(num_blocks, "depth_aggregate_cuda"), kSumThreads, 0, context.stream>>>(task);
    PAPERLAB_CUDA_LAUNCHED(gradient_kernel);
  }
}

template void CudaLaunch::gradient<float>(const GradientTask&, std::int64_t) const;
template void CudaLaunch::gradient<BFloat16>(const GradientTask&, std::int64_t) const;
template void CudaLaunch::gradient<Float16>(const GradientTask&, std::int64_t) const;
template void CudaLaunch::gradient<double>(const GradientTask&, std::int64_t) const;

}  // namespace paperlab::kernels::depth
