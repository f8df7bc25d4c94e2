#pragma once
// cuBLASLt, loaded when it is first needed. No CUDA header, so that every build can name it.

#include <cstdint>

#include "kernels/common/cuda/context.h"
#include "kernels/gemm/cuda_call.h"

namespace paperlab::kernels {

// Whether the library has an algorithm for the call on the current device within `workspace` bytes
// that the caller holds. The answer and the algorithm are kept by key_of the call.
// Throws UnsupportedError if the library cannot be loaded.
bool has_lt_algorithm(const LtCall& call, std::int64_t workspace);

// Runs the call on the context's stream with that algorithm. Throws CudaError if there is none or
// the library refuses it.
void run_lt(const LtCall& call, void* workspace, std::int64_t workspace_bytes,
            const Context& context);

}  // namespace paperlab::kernels
