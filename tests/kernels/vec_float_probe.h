#pragma once
// What vec_float_probe.cpp exports once per instruction set: the operations of vec_float.h on
// arrays of sixteen, which is a whole number of vectors on each.

#include <cstddef>
#include <cstdint>

#include "paperlab/core/cpu_isa.h"

namespace paperlab::kernels {

struct VecFloatProbe {
  std::ptrdiff_t lanes;
  void (*set1)(float x, float* y);
  void (*fma)(const float* a, const float* b, const float* c, float* y);
  void (*max)(const float* a, const float* b, float* y);
  void (*exp)(const float* x, float* y);
  void (*log)(const float* x, float* y);
  void (*load_bfloat16)(const std::uint16_t* x, float* y);
  void (*store_bfloat16)(const float* x, std::uint16_t* y);
  // One square of lanes x lanes.
  void (*transpose_square)(const float* src, std::ptrdiff_t src_stride, float* dst,
                           std::ptrdiff_t dst_stride);
};

namespace generic {
VecFloatProbe vec_float_probe();
}
namespace avx2 {
VecFloatProbe vec_float_probe();
}
namespace avx512 {
VecFloatProbe vec_float_probe();
}

inline VecFloatProbe vec_float_probe(CpuIsa isa) {
  switch (isa) {
    case CpuIsa::kAvx512:
      return avx512::vec_float_probe();
    case CpuIsa::kAvx2:
      return avx2::vec_float_probe();
    case CpuIsa::kGeneric:
      break;
  }
  return generic::vec_float_probe();
}

}  // namespace paperlab::kernels
