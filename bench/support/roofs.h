#pragma once
// The roofs that kernels are compared with: what one thread can compute from registers, and what
// several can read from memory.

#include <cstddef>

#include "paperlab/core/cpu_isa.h"
#include "paperlab/core/parallel.h"

namespace paperlab::bench {

// GFLOP/s of one thread's fused multiply-adds: the best of several runs of some milliseconds,
// because a roof is what nothing is above. In float64 and in float32.
double fma_roof_gflops(CpuIsa isa);
double fma_roof_float32_gflops(CpuIsa isa);

// GFLOP/s of one thread's bfloat16 dot products; 0 where cpu_has_bfloat16() says no.
double dot_roof_bfloat16_gflops();

// Bytes of the last-level cache that a core sees; 32 MiB where the system doesn't tell.
std::size_t last_level_cache_bytes();

// How a buffer is read.
struct ReadForm {
  int num_streams = 1;             // runs side by side
  std::size_t prefetch_bytes = 0;  // ahead; 0: left to the hardware
};

// Reads `bytes` bytes at `data` (64-byte aligned), an equal share on each worker.
void read_memory(const Executor& executor, const void* data, std::size_t bytes, ReadForm form);

struct ReadRoof {
  ReadForm form;
  double gb_s = 0.0;
};

// The best of several forms and passes over a buffer, which must be far larger than the caches.
ReadRoof read_roof(const Executor& executor, const void* data, std::size_t bytes);

// GB/s, read and written together, of copying the first half of a buffer (64-byte aligned, far
// larger than the caches) to the second with stores past the caches: the best of several passes.
double copy_roof_gb_s(const Executor& executor, void* data, std::size_t bytes);

}  // namespace paperlab::bench
