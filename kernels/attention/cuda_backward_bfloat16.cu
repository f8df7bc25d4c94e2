#include "kernels/attention/cuda_backward.cuh"

// ptxas-budget key_kernel: 255 registers, 0 bytes
// ptxas-budget query_kernel: 255 registers, 0 bytes

namespace paperlab::kernels {

template void launch_backward<BFloat16>(const BackwardLaunch& launch, const Context& context);

}  // namespace paperlab::kernels
