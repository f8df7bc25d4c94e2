#pragma once
// Matrix product C[m, n] = sum over k of A[m, k] B[n, k] + bias[n], for operands of either order in
// memory: forward, input gradient and weight gradient of a linear map are this product of
// transposed views.
// Needs LibTorch: no. float32 and bfloat16 accumulate in float32, float64 in float64. The same bits
// for every executor and from run to run.

#include "kernels/common/gemm_problem.h"

namespace paperlab::kernels {

// Writes C; M, N and K may be 0. An element's bits depend on its row of A, its row of B, its bias,
// K, and on whether the product has at most kFewRows rows (tile.h), on nothing else.
// Throws ShapeError for negative sizes, ValueError if neither stride of an operand is 1.
void gemm(const Gemm& problem, const Executor& executor);

// The definition, in float64 whatever the dtype (reference.cpp).
void gemm_reference(const Gemm& problem);

}  // namespace paperlab::kernels
