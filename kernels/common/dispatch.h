#pragma once
// Run-time to compile-time: the one place that maps the CPU's instruction set to a kernel's copies.

#include "paperlab/core/cpu_isa.h"

namespace paperlab::kernels {

// The entry of the instruction set in use. A kernel's cpu.cpp is compiled once for each.
template <class Entry>
Entry select_isa(Entry generic, Entry avx2, Entry avx512) {
  switch (cpu_isa()) {
    case CpuIsa::kAvx512:
      return avx512;
    case CpuIsa::kAvx2:
      return avx2;
    case CpuIsa::kGeneric:
      break;
  }
  return generic;
}

}  // namespace paperlab::kernels
