#pragma once
// The one check of CUDA calls: throws CudaError with file, line, call and the reason.

#include <cuda_runtime_api.h>

#include <string>

#include "paperlab/core/error.h"

namespace paperlab::kernels {

inline void check_cuda(cudaError_t status, const char* file, int line, const char* call) {
  if (status == cudaSuccess) {
    return;
  }
  cudaGetLastError();  // else the next launch would report this call's error as its own
  const std::string path = file;
  const std::size_t root = path.rfind("kernels/");
  throw CudaError((root == std::string::npos ? path : path.substr(root)) + ":" +
                  std::to_string(line) + ": " + call + " must succeed, got " +
                  cudaGetErrorString(status) + " (" + std::to_string(status) + ")");
}

}  // namespace paperlab::kernels

#define PAPERLAB_CUDA_CHECK(call) ::paperlab::kernels::check_cuda((call), __FILE__, __LINE__, #call)
// After every <<<>>>: a bad launch shows here, a fault of the kernel at the next synchronization.
#define PAPERLAB_CUDA_LAUNCHED(kernel) \
  ::paperlab::kernels::check_cuda(cudaGetLastError(), __FILE__, __LINE__, "launch of " #kernel)
