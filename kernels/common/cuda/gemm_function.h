#pragma once
// A matrix product on a GPU as one kernel offers it and others are given it: C = A B^T + bias and
// what may follow at once. No CUDA header, so that every build can name it.

#include "kernels/common/cuda/context.h"
#include "kernels/common/gemm_problem.h"

namespace paperlab::kernels {

enum class Activation : std::uint8_t {
  kNone,
  kGeluTanh,  // x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))
};

// C = residual + gate * activation(A B^T + bias), element by element; what is absent is left out.
// Gate and residual are [M, N] of the dtype of C, rows apart by their strides. The residual may be
// C itself, with its stride, if there is neither activation nor gate: C += A B^T + bias.
struct GemmEpilogue {
  Activation activation = Activation::kNone;
  const void* gate = nullptr;
  std::int64_t gate_stride = 0;
  const void* residual = nullptr;
  std::int64_t residual_stride = 0;
  // C, gate and residual are float32 though operands and bias are bfloat16 or float16.
  bool is_wide = false;

  constexpr DType dtype_of_c(DType dtype) const { return is_wide ? DType::kFloat32 : dtype; }
};

// All pointers are of the device; the work is asynchronous on the context's stream.
struct GemmCuda {
  // Bytes of workspace that a product needs, aligned to 256 bytes: a function of its sizes alone.
  std::int64_t (*workspace)(const Gemm& problem) = nullptr;
  void (*multiply)(const Gemm& problem, const GemmEpilogue& epilogue, void* workspace,
                   const Context& context) = nullptr;
};

}  // namespace paperlab::kernels
