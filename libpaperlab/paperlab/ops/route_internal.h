#pragma once
/// \file
/// How an operator's implementation for all devices (CompositeExplicitAutograd) goes on:
///
///     switch (route_of("rms_norm", x)) {
///       case Route::kCpu:    kernels::rms_norm(problem, torch_executor()); ...
///       case Route::kCuda:   if constexpr (kernels::kHasCuda) {
///                              on_cuda(x, kernels::rms_norm_cuda_workspace(problem),
///                                      [&](void* memory, const kernels::Context& context) {
///                                        kernels::rms_norm_cuda(problem, memory, context);
///                                      });
///                            }
///       case Route::kTorch:  ATen's operations, which know no devices and wait for none ...
///     }
///
/// An operator has a kernel for CUDA if it has a row in cuda_kernels_internal.h.

#include <ATen/core/Tensor.h>
#include <c10/core/DeviceGuard.h>

#include <cstdint>

#include "kernels/common/cuda/context.h"
#include "paperlab/core/export.h"

namespace paperlab::ops {

enum class Route : std::uint8_t { kCpu, kCuda, kTorch };

/// Who computes operator `op` on tensors like `x`, by the backend in use (backend.h). A backward
/// operator goes by the name of its forward operator. Gives the notice that CUDA tensors are left
/// to LibTorch's operations, once for each operator and process.
/// \param argument            what the operator calls x.
/// \param kernel_takes_dtype  false: the CUDA kernel takes no tensors like x, which are left to
///                            LibTorch's operations.
/// \param shared_memory       bytes that the kernel's largest block needs: tensors on a GPU whose
///                            blocks may have fewer are left to LibTorch's operations.
/// \throws c10::ValueError  "OP: ARGUMENT must be on the CPU or a CUDA device, got xpu:0"; if our
///                          kernels are asked for on a GPU that they are not compiled for, or
///                          that cannot be asked (which names the reason); and that of backend().
PAPERLAB_API Route route_of(const char* op, const at::Tensor& x, const char* argument = "x",
                            bool kernel_takes_dtype = true, std::int64_t shared_memory = 0);

/// LibTorch's current stream of x's device, a CUDA device.
kernels::Context context_of(const at::Tensor& x);

/// While it lives, x's device is the current one.
struct CudaCall {
  explicit CudaCall(const at::Tensor& x) : guard(x.device()), context(context_of(x)) {}

  c10::DeviceGuard guard;
  kernels::Context context;
};

/// `bytes` bytes of LibTorch's allocator on the device of `like`, aligned to 256 bytes and not
/// initialized. Given back in the order of the stream, so that the tensor need not outlive the
/// kernel's end.
PAPERLAB_API at::Tensor workspace(std::int64_t bytes, const at::Tensor& like);

/// Calls run(memory, context) with `bytes` bytes of such memory (null for 0), on x's device.
template <class F>
void on_cuda(const at::Tensor& x, std::int64_t bytes, F run) {
  const CudaCall cuda(x);
  const at::Tensor memory = workspace(bytes, x);
  run(memory.mutable_data_ptr(), cuda.context);
}

}  // namespace paperlab::ops
