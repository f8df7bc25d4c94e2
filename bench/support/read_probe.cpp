// Compiled once per instruction set, like a kernel's cpu.cpp.
#include "bench/support/probes.h"
#include "kernels/common/vec_float.h"

namespace paperlab::bench::PAPERLAB_ISA {
namespace {

namespace vec = kernels::PAPERLAB_ISA;
using vec::kFloatLanes;
using vec::VecF;

constexpr std::ptrdiff_t kBlock = 64;  // floats: 256 bytes, four lines
constexpr int kChains = 4;             // sums of a run: loads don't wait for additions

template <int kStreams>
float sum_streams(const float* data, std::size_t count, std::size_t prefetch_bytes) {
  const std::ptrdiff_t length = static_cast<std::ptrdiff_t>(count) / kStreams / kBlock * kBlock;
  VecF sums[kChains] = {};
  for (std::ptrdiff_t at = 0; at < length; at += kBlock) {
    for (int stream = 0; stream < kStreams; ++stream) {
      const float* block = data + stream * length + at;
      if (prefetch_bytes > 0) {
        for (std::ptrdiff_t line = 0; line < kBlock; line += 16) {
          __builtin_prefetch(reinterpret_cast<const char*>(block + line) + prefetch_bytes, 0, 3);
        }
      }
#pragma GCC unroll 16
      for (std::ptrdiff_t i = 0; i < kBlock / kFloatLanes; ++i) {
        sums[i % kChains] = sums[i % kChains] + vec::load(block + i * kFloatLanes);
      }
    }
  }
  const VecF total = sums[0] + sums[1] + (sums[2] + sums[3]);
  return total[0];
}

}  // namespace

float read_sum(const float* data, std::size_t count, int num_streams, std::size_t prefetch_bytes) {
  switch (num_streams) {
    case 1:
      return sum_streams<1>(data, count, prefetch_bytes);
    case 2:
      return sum_streams<2>(data, count, prefetch_bytes);
    case 4:
      return sum_streams<4>(data, count, prefetch_bytes);
    default:
      return sum_streams<8>(data, count, prefetch_bytes);
  }
}

}  // namespace paperlab::bench::PAPERLAB_ISA
