// Compiled once per instruction set, like a kernel's cpu.cpp.
#include "tests/kernels/vec_float_probe.h"

#include "kernels/common/vec_float.h"

namespace paperlab::kernels::PAPERLAB_ISA {
namespace {

constexpr std::ptrdiff_t kCount = 16;

void probe_set1(float x, float* y) {
  for (std::ptrdiff_t i = 0; i < kCount; i += kFloatLanes) {
    store(y + i, set1(x));
  }
}
void probe_fma(const float* a, const float* b, const float* c, float* y) {
  for (std::ptrdiff_t i = 0; i < kCount; i += kFloatLanes) {
    store(y + i, fma(load(a + i), load(b + i), load(c + i)));
  }
}
void probe_max(const float* a, const float* b, float* y) {
  for (std::ptrdiff_t i = 0; i < kCount; i += kFloatLanes) {
    store(y + i, max(load(a + i), load(b + i)));
  }
}
void probe_exp(const float* x, float* y) {
  for (std::ptrdiff_t i = 0; i < kCount; i += kFloatLanes) {
    store(y + i, exp(load(x + i)));
  }
}
void probe_log(const float* x, float* y) {
  for (std::ptrdiff_t i = 0; i < kCount; i += kFloatLanes) {
    store(y + i, log(load(x + i)));
  }
}
void probe_load_bfloat16(const std::uint16_t* x, float* y) {
  for (std::ptrdiff_t i = 0; i < kCount; i += kFloatLanes) {
    store(y + i, load_bfloat16(x + i));
  }
}
void probe_store_bfloat16(const float* x, std::uint16_t* y) {
  for (std::ptrdiff_t i = 0; i < kCount; i += kFloatLanes) {
    store_bfloat16(y + i, load(x + i));
  }
}
void probe_transpose_square(const float* src, std::ptrdiff_t src_stride, float* dst,
                            std::ptrdiff_t dst_stride) {
  transpose_square(src, src_stride, dst, dst_stride);
}

}  // namespace

VecFloatProbe vec_float_probe() {
  return {kFloatLanes,
          probe_set1,
          probe_fma,
          probe_max,
          probe_exp,
          probe_log,
          probe_load_bfloat16,
          probe_store_bfloat16,
          probe_transpose_square};
}

}  // namespace paperlab::kernels::PAPERLAB_ISA
