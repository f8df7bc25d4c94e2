#pragma once
// Matrix product C[m, n] = sum over k of A[m, k] B[n, k] + bias[n], for operands of either order in
// memory: forward, input gradient and weight gradient of a linear map are this product of
// transposed views.
// Needs LibTorch: no. float32 and bfloat16 accumulate in float32, float64 in float64. The same bits
// for every executor and from run to run.

#include <cstdint>

#include "kernels/common/tensor_view.h"
#include "paperlab/core/parallel.h"

namespace paperlab::kernels {

// Element (row, k) lies at data[row * row_stride + k * k_stride]; one of the strides is 1.
struct GemmOperand {
  const void* data = nullptr;
  std::int64_t row_stride = 0;
  std::int64_t k_stride = 1;
};

// All of `dtype`.
struct Gemm {
  DType dtype = DType::kFloat32;
  std::int64_t m = 0;
  std::int64_t n = 0;
  std::int64_t k = 0;
  GemmOperand a;               // [M, K]
  GemmOperand b;               // [N, K]
  const void* bias = nullptr;  // [N], contiguous; absent: zeros
  void* c = nullptr;           // [M, N], rows c_stride apart; does not overlap the others
  std::int64_t c_stride = 0;
};

// Writes C; M, N and K may be 0. An element's bits depend on its row of A, its row of B, its bias,
// K, and on whether the product has at most kFewRows rows (tile.h), on nothing else.
// Throws ShapeError for negative sizes, ValueError if neither stride of an operand is 1.
void gemm(const Gemm& problem, const Executor& executor);

// The definition, in float64 whatever the dtype (reference.cpp).
void gemm_reference(const Gemm& problem);

}  // namespace paperlab::kernels
