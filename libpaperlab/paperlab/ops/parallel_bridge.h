#pragma once
/// \file
/// The executor that runs a kernel's tasks on LibTorch's threads (torch.set_num_threads governs
/// it).

#include "paperlab/core/export.h"
#include "paperlab/core/parallel.h"

namespace paperlab::ops {

/// Runs tasks through at::parallel_for, each on the next free thread; inside another parallel
/// region, serially on the calling thread.
PAPERLAB_API const Executor& torch_executor();

}  // namespace paperlab::ops
