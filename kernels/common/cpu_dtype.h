#pragma once
// The dtypes of kernels on the CPU.

#include "kernels/common/tensor_view.h"
#include "paperlab/core/error.h"

namespace paperlab::kernels {

// Throws DTypeError for float16.
inline void require_cpu_dtype(DType dtype, const char* function) {
  require<DTypeError>(dtype != DType::kFloat16, function,
                      "the dtype must be float32, float64 or bfloat16 on the CPU", "float16");
}

}  // namespace paperlab::kernels
