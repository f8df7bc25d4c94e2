// Compiled once per instruction set, like a kernel's cpu.cpp.
#include "bench/support/probes.h"

#include "kernels/common/vec.h"

namespace paperlab::bench::PAPERLAB_ISA {
namespace {

namespace vec = kernels::PAPERLAB_ISA;
using vec::kLanes;
using vec::Vec8d;

// Enough chains for four cycles of latency on two units, few enough for the registers.
#if defined(__AVX512F__)
constexpr int kChains = 12;
#else
constexpr int kChains = 6;
#endif

static_assert(kChains * kLanes <= kNumStart);

}  // namespace

double fma_rounds(long rounds, const double* start, double* sink) {
  const Vec8d factor = vec::set1(0.999999);
  const Vec8d term = vec::set1(1e-6);
  Vec8d chain[kChains];
#pragma GCC unroll 12
  for (int i = 0; i < kChains; ++i) {
    chain[i] = vec::load(start + i * kLanes);
  }
  for (long round = 0; round < rounds; ++round) {
#pragma GCC unroll 12
    for (int i = 0; i < kChains; ++i) {
      chain[i] = vec::fma(chain[i], factor, term);
    }
  }
  Vec8d total = vec::zero();
#pragma GCC unroll 12
  for (int i = 0; i < kChains; ++i) {
    total = total + chain[i];
  }
  *sink = vec::sum(total);
  return 2.0 * kLanes * kChains * static_cast<double>(rounds);
}

}  // namespace paperlab::bench::PAPERLAB_ISA
