#pragma once
// Our matrix product as kernels are given it.

#include "kernels/gemm/gemm.h"
#include "kernels/linear_cross_entropy/linear_cross_entropy.h"

namespace paperlab::test {

inline kernels::Gemm gemm_of(const kernels::MatrixProduct& of) {
  return {of.dtype,
          of.m,
          of.n,
          of.k,
          {of.a.data, of.a.row_stride, of.a.k_stride},
          {of.b.data, of.b.row_stride, of.b.k_stride},
          of.bias,
          of.c,
          of.c_stride};
}

inline void multiply_by_gemm(const kernels::MatrixProduct& of, const Executor& executor) {
  kernels::gemm(gemm_of(of), executor);
}

}  // namespace paperlab::test
