#pragma once
// Tensor maps from the driver. Host code of builds with CUDA.

#include "kernels/common/cuda/tma.h"

namespace paperlab::kernels {

// The map of a tensor in the current device's memory, whose address is a multiple of 16. The driver
// is asked for the function when it is first needed, so that nothing links to it. Throws CudaError.
TensorMap tensor_map(const BoxTensor& tensor);

}  // namespace paperlab::kernels
