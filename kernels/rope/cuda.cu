#include "kernels/rope/cuda.h"

#include "kernels/common/cuda/launch.cuh"
#include "kernels/rope/block.h"

namespace paperlab::kernels {
namespace {

template <class T>
__global__ void __launch_bounds__(kRopeThreads, 2)
    rope_kernel(Rope problem, RopePlan plan, void* out) {
  DeviceTeam<NoRegisters> team{static_cast<int>(threadIdx.x), {}};
  rope_block<T>(team, problem, plan, blockIdx.x, out);
}

}  // namespace

void rope_cuda(const Rope& problem, void* out, const Context& context) {
  check_rope(problem);
  const auto& size = problem.x.size;
  if (size[0] == 0 || size[1] == 0 || size[2] == 0 || size[3] == 0) {
    return;
  }
  with_element(problem.x.dtype, [&](auto element) {
    using T = typename decltype(element)::Type;
    const RopePlan plan = rope_plan<T>(problem, out);
    rope_kernel<T><<<grid_size(plan.num_blocks(), "rope"), kRopeThreads, 0, context.stream>>>(
        problem, plan, out);
    PAPERLAB_CUDA_LAUNCHED(rope_kernel);
  });
}

}  // namespace paperlab::kernels
