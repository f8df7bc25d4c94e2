#pragma once
// The GPU's matrix product on the CPU: the call that cuBLASLt is given, executed as it reads, and
// our pass behind it, block by block. For the tests of gemm and of kernels that are given products.

#include "kernels/gemm/cuda.h"
#include "kernels/gemm/cuda_call.h"

namespace paperlab::test {

// As gemm_cuda, on host pointers; every element is rounded once to the dtype of D.
// is_reversed: the threads of a block in the other order. may_fuse = false: as if the library had
// no epilogues.
void emulate_gemm(const kernels::Gemm& problem, const kernels::GemmEpilogue& epilogue,
                  bool is_reversed = false, bool may_fuse = true);

// What a kernel is given in place of gemm_on_cuda().
kernels::GemmCuda emulated_gemm();

// The call alone. Throws ValueError if the library would refuse its layouts.
void execute_lt(const kernels::LtCall& call);

}  // namespace paperlab::test
