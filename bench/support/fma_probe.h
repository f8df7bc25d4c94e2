#pragma once
// The roof that kernels are compared with: fused multiply-adds from registers, without dependences.

#include "paperlab/core/cpu_isa.h"

namespace paperlab::bench {

constexpr int kNumStart = 96;

// What fma_probe.cpp exports once per instruction set: runs `rounds` rounds and returns the number
// of floating-point operations (two for each fused multiply-add). `start` holds kNumStart different
// values: equal lanes would be computed once.
namespace generic {
double fma_rounds(long rounds, const double* start, double* sink);
}
namespace avx2 {
double fma_rounds(long rounds, const double* start, double* sink);
}
namespace avx512 {
double fma_rounds(long rounds, const double* start, double* sink);
}

// GFLOP/s of one thread: the best of several runs of some milliseconds, because a roof is what
// nothing is above.
double fma_roof_gflops(CpuIsa isa);

}  // namespace paperlab::bench
