#pragma once
// The roof that kernels are compared with: fused multiply-adds from registers, without dependences.

#include "paperlab/core/cpu_isa.h"

namespace paperlab::bench {

// What fma_probe.cpp exports once per instruction set: runs `rounds` rounds and returns the number
// of floating-point operations (two for each fused multiply-add).
namespace generic {
double fma_rounds(long rounds, double* sink);
}
namespace avx2 {
double fma_rounds(long rounds, double* sink);
}
namespace avx512 {
double fma_rounds(long rounds, double* sink);
}

// GFLOP/s of one thread: the median of several runs of some milliseconds.
double fma_roof_gflops(CpuIsa isa);

}  // namespace paperlab::bench
