#pragma once
/// \file
/// Who computes an operator: our kernels or LibTorch's own operations.

#include <cstdint>
#include <string>

#include "paperlab/core/export.h"

namespace paperlab::ops {

enum class Backend : std::uint8_t {
  /// CPU tensors: our kernels. CUDA tensors: our kernel where it was seen to pass its tests on this
  /// GPU's architecture (the tables in kernels/<op>/README.md), else LibTorch's operations, with
  /// one notice for each operator and process. Before a CUDA graph is captured each operator is to
  /// be called once: first calls load libraries and ask the device what it is.
  kAuto,
  /// Our kernels, also those that no GPU of this architecture has passed.
  kKernels,
  /// As kKernels, without the instructions that one architecture alone has: on Hopper the kernels
  /// of
  /// sm_80. For comparison.
  kPortable,
  /// LibTorch's operations on every device. Slower on the CPU and made for comparison: every
  /// operator takes float16 as well then.
  kTorch,
};

/// The backend in use. At first that of the environment variable PAPERLAB_BACKEND ("auto",
/// "kernels", "portable" or "torch"), or kAuto.
/// \throws c10::ValueError  (Python: ValueError) if that variable holds anything else.
PAPERLAB_API Backend backend();

/// Whether our kernels are asked for, verified or not.
constexpr bool wants_kernels(Backend backend) {
  return backend == Backend::kKernels || backend == Backend::kPortable;
}

/// Sets the backend in use, for the whole process and for calls that begin afterwards. A backward
/// pass may use another one than its forward pass.
PAPERLAB_API void set_backend(Backend backend);

/// "auto", "kernels", "portable" or "torch".
PAPERLAB_API const char* backend_name(Backend backend);

/// The backend of that name.
/// \throws c10::ValueError  "`what` must be one of auto, kernels, portable, torch, got 'NAME'".
PAPERLAB_API Backend backend_of_name(const char* what, const std::string& name);

/// Gets the notices that CUDA tensors are left to LibTorch's operations; called by any thread, with
/// locks held or not, so that it may only take note.
using NoticeHandler = void (*)(const std::string& notice);

/// Null, as at first: notices are LibTorch's warnings (c10::warn), by default lines on stderr.
PAPERLAB_API void set_notice_handler(NoticeHandler handler);

/// Hands a notice to the handler that is set.
void give_notice(const std::string& notice);

}  // namespace paperlab::ops
