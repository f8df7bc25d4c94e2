#include "kernels/swiglu/cuda.h"

#include "kernels/common/cuda/launch.cuh"
#include "kernels/swiglu/block.h"

namespace paperlab::kernels {
namespace {

template <class T>
__global__ void __launch_bounds__(kRowThreads) swiglu_kernel(SwigluLaunch launch, MutableRows y) {
  DeviceTeam<NoRegisters> team{static_cast<int>(threadIdx.x), {}};
  swiglu_block<T>(team, launch, y, blockIdx.x);
}

template <class T>
__global__ void __launch_bounds__(kRowThreads)
    swiglu_backward_kernel(SwigluLaunch launch, Rows grad_y, MutableRows grad_gate,
                           MutableRows grad_up) {
  DeviceTeam<NoRegisters> team{static_cast<int>(threadIdx.x), {}};
  swiglu_backward_block<T>(team, launch, grad_y, grad_gate, grad_up, blockIdx.x);
}

bool is_empty(const Swiglu& problem) { return problem.num_rows == 0 || problem.width == 0; }

}  // namespace

void swiglu_cuda(const Swiglu& problem, const MutableRows& y, const Context& context) {
  check_swiglu(problem);
  if (is_empty(problem)) {
    return;
  }
  with_element(problem.dtype, [&](auto element) {
    using T = typename decltype(element)::Type;
    const SwigluLaunch launch = swiglu_forward_launch<T>(problem, y);
    swiglu_kernel<T><<<grid_size(launch.num_blocks(), "swiglu"), launch.plan.team.threads(), 0,
                       context.stream>>>(launch, y);
    PAPERLAB_CUDA_LAUNCHED(swiglu_kernel);
  });
}

void swiglu_backward_cuda(const Swiglu& problem, const Rows& grad_y, const MutableRows& grad_gate,
                          const MutableRows& grad_up, const Context& context) {
  check_swiglu(problem);
  if (is_empty(problem)) {
    return;
  }
  with_element(problem.dtype, [&](auto element) {
    using T = typename decltype(element)::Type;
    const SwigluLaunch launch = swiglu_backward_launch<T>(problem, grad_y, grad_gate, grad_up);
    swiglu_backward_kernel<T>
        <<<grid_size(launch.num_blocks(), "swiglu_backward"), launch.plan.team.threads(), 0,
           context.stream>>>(launch, grad_y, grad_gate, grad_up);
    PAPERLAB_CUDA_LAUNCHED(swiglu_backward_kernel);
  });
}

}  // namespace paperlab::kernels
