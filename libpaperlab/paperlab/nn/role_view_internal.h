#pragma once
// Parts of matrices by head.

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace paperlab::nn {

/// A stored linear weight as [out, in].
inline at::Tensor matrix_of(const at::Tensor& stored, bool is_transposed) {
  return is_transposed ? stored.t() : stored;
}

/// Of a matrix [out, in]: the rows that make a head, or, of the attention's output, the columns
/// that read it.
inline at::Tensor head_part(const at::Tensor& matrix, bool is_output, std::int64_t head,
                            std::int64_t head_dim) {
  return matrix.narrow(is_output ? 1 : 0, head * head_dim, head_dim);
}

}  // namespace paperlab::nn
