#pragma once
// What vec_probe.cpp exports once per instruction set: the operations of vec.h on arrays of eight.

#include <cstdint>

#include "paperlab/core/cpu_isa.h"

namespace paperlab::kernels {

struct VecProbe {
  void (*exp)(const double* x, double* y);
  void (*fma)(const double* a, const double* b, const double* c, double* y);
  void (*select)(std::uint8_t lanes, const double* a, const double* b, double* y);
  std::uint8_t (*greater)(const double* a, const double* b);
  std::uint8_t (*unordered)(const double* a);
  void (*add_exponent)(const double* a, const double* n, double* y);
  void (*add)(const double* a, const double* b, double* y);
  void (*subtract)(const double* a, const double* b, double* y);
  void (*multiply)(const double* a, const double* b, double* y);
  void (*divide)(const double* a, const double* b, double* y);
  double (*sum)(const double* a);
};

namespace generic {
VecProbe vec_probe();
}
namespace avx2 {
VecProbe vec_probe();
}
namespace avx512 {
VecProbe vec_probe();
}

inline VecProbe vec_probe(CpuIsa isa) {
  switch (isa) {
    case CpuIsa::kAvx512:
      return avx512::vec_probe();
    case CpuIsa::kAvx2:
      return avx2::vec_probe();
    case CpuIsa::kGeneric:
      break;
  }
  return generic::vec_probe();
}

}  // namespace paperlab::kernels
