#pragma once
/// \file
/// float16 is a type to store: it is computed with in float32.

#include <ATen/core/Tensor.h>

namespace paperlab::nn {

/// Returns `parameter`, in float32 where it is float16; what is not defined stays so.
inline at::Tensor widened(const at::Tensor& parameter) {
  const bool is_half = parameter.defined() && parameter.scalar_type() == at::kHalf;
  return is_half ? parameter.to(at::kFloat) : parameter;
}

}  // namespace paperlab::nn
