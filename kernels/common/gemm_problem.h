#pragma once
// A matrix product as one kernel offers it and others are given it: C = A B^T + bias.

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

// What a kernel that needs products is given: gemm (kernels/gemm/gemm.h) or one like it.
using GemmFunction = void (*)(const Gemm& problem, const Executor& executor);

}  // namespace paperlab::kernels
