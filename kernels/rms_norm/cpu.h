#pragma once
// What cpu.cpp exports once per instruction set: runs of rows in float32 and bfloat16.

#include "kernels/rms_norm/rms_norm.h"

namespace paperlab::kernels {

struct RmsNormCpu {
  // Rows begin..end-1.
  void (*forward)(const RmsNormForward& problem, std::int64_t begin, std::int64_t end);
  // Likewise; grad_weight [width] is set to the rows' part of the weight's gradient.
  void (*backward)(const RmsNormBackward& problem, std::int64_t begin, std::int64_t end,
                   float* grad_weight);
  // Adds parts [num_parts][width] in order and stores the sums.
  void (*add_parts)(const RmsNormBackward& problem, const float* parts, std::int64_t num_parts);
};

namespace generic {
RmsNormCpu rms_norm_cpu();
}
namespace avx2 {
RmsNormCpu rms_norm_cpu();
}
namespace avx512 {
RmsNormCpu rms_norm_cpu();
}

}  // namespace paperlab::kernels
