// Compiled once per instruction set, like a kernel's cpu.cpp.
#include "bench/support/probes.h"
#include "kernels/common/vec_float.h"

namespace paperlab::bench::PAPERLAB_ISA {
namespace {

namespace vec = kernels::PAPERLAB_ISA;
using vec::kFloatLanes;
using vec::VecF;

// Enough chains for six cycles of latency on two units, few enough for sixteen registers.
constexpr int kChains = 12;

static_assert(kChains * kFloatLanes <= kNumStart);

}  // namespace

double fma_rounds(long rounds, const float* start, float* sink) {
  const VecF factor = vec::set1(0.999F);
  const VecF term = vec::set1(1e-3F);
  VecF chain[kChains];
#pragma GCC unroll 12
  for (int i = 0; i < kChains; ++i) {
    chain[i] = vec::load(start + i * kFloatLanes);
  }
  for (long round = 0; round < rounds; ++round) {
#pragma GCC unroll 12
    for (int i = 0; i < kChains; ++i) {
      chain[i] = vec::fma(chain[i], factor, term);
    }
  }
  VecF total = vec::set1(0.0F);
#pragma GCC unroll 12
  for (int i = 0; i < kChains; ++i) {
    total = total + chain[i];
  }
  *sink = total[0];
  return 2.0 * kFloatLanes * kChains * static_cast<double>(rounds);
}

#if defined(__AVX512F__)
// Two products for each lane.
__attribute__((target("avx512bf16"))) double dot_rounds(long rounds, const float* start,
                                                        float* sink) {
  // Bits of 1.0 as bfloat16, twice in each lane.
  const auto ones = (__m512bh)_mm512_set1_epi32(0x3F803F80);
  __m512 chain[kChains];
#pragma GCC unroll 12
  for (int i = 0; i < kChains; ++i) {
    chain[i] = _mm512_loadu_ps(start + i * kFloatLanes);
  }
  for (long round = 0; round < rounds; ++round) {
#pragma GCC unroll 12
    for (int i = 0; i < kChains; ++i) {
      chain[i] = _mm512_dpbf16_ps(chain[i], ones, ones);
    }
  }
  __m512 total = _mm512_setzero_ps();
#pragma GCC unroll 12
  for (int i = 0; i < kChains; ++i) {
    total = _mm512_add_ps(total, chain[i]);
  }
  *sink = _mm512_cvtss_f32(total);
  return 4.0 * kFloatLanes * kChains * static_cast<double>(rounds);
}
#else
double dot_rounds(long /*rounds*/, const float* /*start*/, float* sink) {
  *sink = 1.0F;
  return 0.0;
}
#endif

}  // namespace paperlab::bench::PAPERLAB_ISA
