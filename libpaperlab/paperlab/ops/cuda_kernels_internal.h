#pragma once
/// \file
/// The operators that have a kernel for CUDA tensors, and where each was seen to pass its tests:
/// the one place that decides what runs by default.

#include <array>
#include <string_view>

namespace paperlab::ops {

/// A row is added with the call of the kernel; `true` is set together with the line in the table of
/// kernels/<op>/README.md that says on which GPU, when and at which commit.
struct CudaKernel {
  std::string_view op;  ///< as route_of is given it
  bool is_wired;        ///< whether the operator calls a kernel at all
  bool verified_sm_80;  ///< compute capability 8.x
  bool verified_sm_90;  ///< compute capability 9.0
};

inline constexpr std::array kCudaKernels = {
    CudaKernel{"attention", true, false, false},
    CudaKernel{"connection_weights", true, false, false},
    CudaKernel{"depth_aggregate", true, false, false},
    CudaKernel{"depth_step", true, false, false},
    CudaKernel{"even_pairs_loss", true, false, false},
    CudaKernel{"group_pool", true, false, false},
    CudaKernel{"linear", true, false, false},
    CudaKernel{"linear_cross_entropy", true, false, false},
    CudaKernel{"rms_norm", true, false, false},
    CudaKernel{"rope", true, false, false},
    CudaKernel{"swiglu", true, false, false},
};

/// Of an operator without a row: nothing is wired.
constexpr CudaKernel cuda_kernel_of(std::string_view op) {
  for (const CudaKernel& kernel : kCudaKernels) {
    if (kernel.op == op) {
      return kernel;
    }
  }
  return {op, false, false, false};
}

}  // namespace paperlab::ops
