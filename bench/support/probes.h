#pragma once
// What the probes export once per instruction set: the loops behind the roofs (roofs.h).

#include <cstddef>

namespace paperlab::bench {

constexpr int kNumStart = 192;

// Declares the loops of one instruction set.
//   fma_rounds    fused multiply-adds from registers, without dependences between chains
//   dot_rounds    the same with bfloat16 dot products that add to float32; 0 where the instruction
//                 set has none. Needs a CPU with AVX512-BF16
// Both run `rounds` rounds and return the number of floating-point operations. `start` holds
// kNumStart different values: equal lanes would be computed once.
//   read_sum      reads `count` floats as `num_streams` (1, 2, 4 or 8) runs side by side,
//   prefetching
//                 `prefetch_bytes` ahead (0: not); what doesn't fill a block of each run is left
//                 out
//   copy_past_caches  copies whole lines of 16 floats with stores that leave no copy in a cache;
//                 both addresses are on a line
#define PAPERLAB_DECLARE_PROBES(isa)                                     \
  namespace isa {                                                        \
  double fma_rounds(long rounds, const double* start, double* sink);     \
  double fma_rounds(long rounds, const float* start, float* sink);       \
  double dot_rounds(long rounds, const float* start, float* sink);       \
  float read_sum(const float* data, std::size_t count, int num_streams,  \
                 std::size_t prefetch_bytes);                            \
  void copy_past_caches(const float* from, float* to, std::size_t count, \
                        std::size_t prefetch_bytes);                     \
  }

PAPERLAB_DECLARE_PROBES(generic)
PAPERLAB_DECLARE_PROBES(avx2)
PAPERLAB_DECLARE_PROBES(avx512)

#undef PAPERLAB_DECLARE_PROBES

}  // namespace paperlab::bench
