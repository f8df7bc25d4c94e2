#include "kernels/common/cuda/architecture.h"

#include <cuda_runtime_api.h>

namespace paperlab::kernels {

int device_architecture(int device) {
  int major = 0;
  int minor = 0;
  const bool is_known =
      cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess &&
      cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) == cudaSuccess;
  cudaGetLastError();  // a missing device is an answer, not an error of the next call
  return is_known ? 10 * major + minor : 0;
}

}  // namespace paperlab::kernels
