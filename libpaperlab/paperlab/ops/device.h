#pragma once
/// \file
/// Devices for tensors of C++ programs.

#include <c10/core/Device.h>

#include "paperlab/core/export.h"

namespace paperlab::ops {

/// Makes sure that tensors can lie on `device`, the CPU or a CUDA device.
///
/// A C++ program is linked with LibTorch's part for the CPU; the part for CUDA, which lies beside
/// it in a CUDA build of torch, is loaded here. Call it before other work of LibTorch, which counts
/// the devices once.
/// \throws UnsupportedError  "device cuda:1 needs ...: <reason>" if there is no such part or no
/// such
///                           GPU; "device mps must be ..." for other devices.
PAPERLAB_API void require_device(const c10::Device& device);

}  // namespace paperlab::ops
