#pragma once
// The element type of a tensor as kernels name it, and which of them operators take.

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include "kernels/common/tensor_view.h"
#include "paperlab/ops/backend.h"

namespace paperlab::ops {

// x is float32, float64, bfloat16 or float16: operators check that first.
inline kernels::DType kernel_dtype(const at::Tensor& x) {
  switch (x.scalar_type()) {
    case at::kDouble:
      return kernels::DType::kFloat64;
    case at::kBFloat16:
      return kernels::DType::kBFloat16;
    case at::kHalf:
      return kernels::DType::kFloat16;
    default:
      return kernels::DType::kFloat32;
  }
}

// float16 is for the GPU: our kernels on the CPU have none.
inline void check_kernel_dtype(const char* function, const char* name, const at::Tensor& x) {
  const auto dtype = x.scalar_type();
  const bool is_taken = dtype == at::kFloat || dtype == at::kDouble || dtype == at::kBFloat16;
  if (x.device().is_cpu() && backend() != Backend::kTorch) {
    TORCH_CHECK_TYPE(is_taken, function, ": ", name, " must be float32, float64 or bfloat16, got ",
                     dtype);
  } else {
    TORCH_CHECK_TYPE(is_taken || dtype == at::kHalf, function, ": ", name,
                     " must be float32, float64, bfloat16 or float16, got ", dtype);
  }
}

// Of sums and of statistics (log-sum-exp, inverse root mean square) of tensors of that dtype.
inline at::ScalarType statistics_dtype(at::ScalarType dtype) {
  return dtype == at::kDouble ? at::kDouble : at::kFloat;
}

}  // namespace paperlab::ops
