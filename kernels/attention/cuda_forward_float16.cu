#include "kernels/attention/cuda_forward.cuh"

// ptxas-budget forward_kernel: 255 registers, 0 bytes

namespace paperlab::kernels {

template void launch_forward<Float16>(const ForwardLaunch& launch, const Context& context);

}  // namespace paperlab::kernels
