#pragma once
// Products from LibTorch's operations, on any device.

#include <ATen/core/Tensor.h>
#include <ATen/ops/bmm.h>
#include <ATen/ops/mm.h>

namespace paperlab::ops {

// The dtype in which factors like x lie: half types stay as they are on a GPU, whose matrix units
// multiply them and add in float32; elsewhere that of sums.
inline at::ScalarType factor_dtype(const at::Tensor& x, at::ScalarType sums) {
  return x.is_cuda() ? x.scalar_type() : sums;
}

// x y with sums in that dtype: of matrices [n, k] and [k, m], or of [N, n, k] and [N, k, m].
// Factors have that dtype or, on a GPU, are both of one half type.
inline at::Tensor product(const at::Tensor& x, const at::Tensor& y, at::ScalarType sums) {
  const bool is_batch = x.dim() == 3;
  if (x.scalar_type() == sums || x.numel() == 0 || y.numel() == 0) {
    return is_batch ? at::bmm(x.to(sums), y.to(sums)) : at::mm(x.to(sums), y.to(sums));
  }
  return is_batch ? at::bmm(x, y, sums) : at::mm(x, y, sums);
}

}  // namespace paperlab::ops
