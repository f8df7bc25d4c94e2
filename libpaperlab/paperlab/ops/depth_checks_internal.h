#pragma once
// Checks that the operators of depth-wise aggregation share. They look at no data, so that they
// hold for tensors without any.

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include "kernels/depth_aggregate/depth_aggregate.h"
#include "paperlab/ops/kernel_dtype_internal.h"

namespace paperlab::ops::depth {

inline at::ScalarType statistics_of(const at::Tensor& x) {
  return statistics_dtype(x.scalar_type());
}

inline void check_layout(const char* function, const char* name, const at::Tensor& x) {
  TORCH_CHECK_VALUE(x.layout() == at::kStrided, function, ": ", name,
                    " must be strided, got layout ", x.layout());
}

inline void check_floating(const char* function, const char* name, const at::Tensor& x) {
  check_kernel_dtype(function, name, x);
  check_layout(function, name, x);
}

// `like` is the argument called `like_name`.
inline void check_like(const char* function, const char* name, const at::Tensor& x,
                       const char* like_name, const at::Tensor& like) {
  TORCH_CHECK_TYPE(x.scalar_type() == like.scalar_type(), function, ": ", name,
                   " must be of the dtype of ", like_name, " (", like.scalar_type(), "), got ",
                   x.scalar_type());
  check_layout(function, name, x);
  TORCH_CHECK_VALUE(x.device() == like.device(), function, ": ", name, " must be on the device of ",
                    like_name, " (", like.device(), "), got ", x.device());
}

inline void check_sizes(const char* function, const char* name, const at::Tensor& x,
                        c10::SymIntArrayRef sizes) {
  TORCH_CHECK_VALUE(x.sym_sizes() == sizes, function, ": ", name, " must be ", sizes, ", got ",
                    x.sym_sizes());
}

inline kernels::GeluForm gelu_form(const char* function, c10::string_view name) {
  TORCH_CHECK_VALUE(name == "exact" || name == "tanh", function,
                    ": gelu must be \"exact\" or \"tanh\", got \"", name, "\"");
  return name == "exact" ? kernels::GeluForm::kExact : kernels::GeluForm::kTanh;
}

// x [B, T, D], w1 [D, K], w2 [K, num_weights] of a generator; with a [C, J], the bias (both are in
// connection_weights.cpp).
void check_matrices(const char* function, const at::Tensor& x, const at::Tensor& w1,
                    const at::Tensor& w2, const c10::SymInt& num_weights);
void check_generator(const char* function, const at::Tensor& x, const at::Tensor& w1,
                     const at::Tensor& w2, const at::Tensor& a);
// In the dtype of x's statistics.
void check_eps(const char* function, double eps, const at::Tensor& x);

}  // namespace paperlab::ops::depth
