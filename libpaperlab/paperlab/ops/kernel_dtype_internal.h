#pragma once
// The element type of a tensor as kernels name it.

#include <ATen/core/Tensor.h>

#include "kernels/common/tensor_view.h"

namespace paperlab::ops {

// x is float32, float64 or bfloat16: operators check that first.
inline kernels::DType kernel_dtype(const at::Tensor& x) {
  switch (x.scalar_type()) {
    case at::kDouble:
      return kernels::DType::kFloat64;
    case at::kBFloat16:
      return kernels::DType::kBFloat16;
    default:
      return kernels::DType::kFloat32;
  }
}

}  // namespace paperlab::ops
