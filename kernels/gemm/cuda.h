#pragma once
// The matrix product on a GPU through cuBLASLt, with the epilogues of
// kernels/common/cuda/gemm_function.h. No CUDA header, so that every build can name it.
//
// libcublasLt is loaded at the first product: the library that the process has loaded already
// (LibTorch brings one), else that of the system. Nothing is linked to it.
// float32, bfloat16 and float16 accumulate in float32 (never in TensorFloat-32), float64 in
// float64. The same bits from run to run on a GPU: one algorithm is asked for, sums that are split
// are added in float32, and the answer is kept by shape. Another GPU, another version of the
// library or another alignment of the operands (below 16 bytes) may give other bits.

#include "kernels/common/cuda/gemm_function.h"

namespace paperlab::kernels {

// Asynchronous on the context's stream. M, N and K may be 0.
// Throws as check_gemm_cuda, UnsupportedError if the library cannot be loaded, CudaError if it
// refuses the product.
void gemm_cuda(const Gemm& problem, const GemmEpilogue& epilogue, void* workspace,
               const Context& context);

// Bytes, a function of M and N alone.
std::int64_t gemm_cuda_workspace(const Gemm& problem);

// What other kernels are given.
inline GemmCuda gemm_on_cuda() { return {gemm_cuda_workspace, gemm_cuda}; }

// --- without a GPU (cuda_reference.cpp) ---------------------------------------------------------

// Throws ShapeError for negative sizes; ValueError if neither stride of an operand is 1, rows of an
// operand or of C, gate or residual overlap, or the residual is C but there is an activation or a
// gate; DTypeError if C shall be wide for operands of 32 or 64 bits.
void check_gemm_cuda(const Gemm& problem, const GemmEpilogue& epilogue);

// The definition, one element at a time in float64.
void gemm_epilogue_reference(const Gemm& problem, const GemmEpilogue& epilogue);

}  // namespace paperlab::kernels
