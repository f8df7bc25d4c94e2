#pragma once
/// \file
/// The choice for CUDA tensors as a function of everything it depends on.

#include "paperlab/ops/backend.h"
#include "paperlab/ops/cuda_kernels_internal.h"
#include "paperlab/ops/route_internal.h"

namespace paperlab::ops {

struct CudaRoute {
  Route route;
  bool is_refused = false;  ///< our kernels were asked for and cannot run here
  const char* reason = "";  ///< why it is not our kernel
  bool lacks_memory = false;
};

/// Whether this library's device code (cmake/Cuda.cmake) runs on compute capability
/// `architecture`, as 80 for sm_80.
constexpr bool is_compiled_for(int architecture) {
  return (architecture >= 80 && architecture < 90) || architecture == 90;
}

/// `wanted` is not kTorch; `architecture` (0: the device could not be asked) and whether a
/// block's shared memory `fits` the device matter where the operator has a kernel.
constexpr CudaRoute cuda_route(Backend wanted, const CudaKernel& kernel, bool has_cuda,
                               bool takes_dtype, int architecture, bool fits = true) {
  if (!has_cuda) {
    return {Route::kTorch, false, "this build has no CUDA kernels (it found no nvcc)"};
  }
  if (!kernel.is_wired) {
    return {Route::kTorch, false, "this operator has no CUDA kernel yet"};
  }
  if (!takes_dtype) {
    return {Route::kTorch, false, "this operator has no CUDA kernel for this dtype"};
  }
  if (architecture == 0) {
    return {Route::kTorch, wants_kernels(wanted),
            "the device could not be asked for its architecture"};
  }
  if (!is_compiled_for(architecture)) {
    return {Route::kTorch, wants_kernels(wanted),
            "the CUDA kernels are compiled for sm_80 to sm_89 and sm_90 alone"};
  }
  if (!fits) {
    return {Route::kTorch, false, "a block of the kernel needs more shared memory than the GPU has",
            /*lacks_memory=*/true};
  }
  const bool is_verified = architecture == 90 ? kernel.verified_sm_90 : kernel.verified_sm_80;
  if (wants_kernels(wanted) || is_verified) {
    return {Route::kCuda};
  }
  return {Route::kTorch, false,
          "the kernel was not yet seen to pass its tests on a GPU of this architecture "
          "(paperlab.ops.set_backend(\"kernels\") takes it nevertheless)"};
}

}  // namespace paperlab::ops
