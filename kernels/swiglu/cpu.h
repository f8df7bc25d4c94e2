#pragma once
// What cpu.cpp exports once per instruction set: rows in float32 and bfloat16.

#include "kernels/swiglu/swiglu.h"

namespace paperlab::kernels {

struct SwigluCpu {
  // Elements begin..end-1 of a row.
  void (*forward)(const Swiglu& problem, const MutableRows& y, std::int64_t row, std::int64_t begin,
                  std::int64_t end);
  void (*backward)(const Swiglu& problem, const Rows& grad_y, const MutableRows& grad_gate,
                   const MutableRows& grad_up, std::int64_t row, std::int64_t begin,
                   std::int64_t end);
};

namespace generic {
SwigluCpu swiglu_cpu();
}
namespace avx2 {
SwigluCpu swiglu_cpu();
}
namespace avx512 {
SwigluCpu swiglu_cpu();
}

}  // namespace paperlab::kernels
