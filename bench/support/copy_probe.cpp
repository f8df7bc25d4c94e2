// Compiled once per instruction set, like a kernel's cpu.cpp.
#include <immintrin.h>

#include "bench/support/probes.h"
#include "kernels/common/vec_float.h"

namespace paperlab::bench::PAPERLAB_ISA {
namespace {

namespace vec = kernels::PAPERLAB_ISA;
using vec::kFloatLanes;

void stream(float* p, vec::VecF v) {
#if defined(__AVX512F__)
  _mm512_stream_ps(p, v);
#elif defined(__AVX2__)
  _mm256_stream_ps(p, v);
#else
  _mm_stream_ps(p, v);
#endif
}

}  // namespace

void copy_past_caches(const float* from, float* to, std::size_t count, std::size_t prefetch_bytes) {
  constexpr std::size_t kLine = 16;
  for (std::size_t at = 0; at + kLine <= count; at += kLine) {
    __builtin_prefetch(reinterpret_cast<const char*>(from + at) + prefetch_bytes, 0, 3);
    for (std::size_t i = 0; i < kLine; i += static_cast<std::size_t>(kFloatLanes)) {
      stream(to + at + i, vec::load(from + at + i));
    }
  }
  _mm_sfence();
}

}  // namespace paperlab::bench::PAPERLAB_ISA
