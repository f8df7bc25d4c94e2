#pragma once
// What cpu.cpp exports once per instruction set: positions in float32 and bfloat16.

#include "kernels/rope/rope.h"

namespace paperlab::kernels {

struct RopeCpu {
  // All heads at positions begin..end-1 of [B, T] laid out in a row.
  void (*rotate)(const Rope& problem, void* out, std::int64_t begin, std::int64_t end);
};

namespace generic {
RopeCpu rope_cpu();
}
namespace avx2 {
RopeCpu rope_cpu();
}
namespace avx512 {
RopeCpu rope_cpu();
}

}  // namespace paperlab::kernels
