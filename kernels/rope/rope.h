#pragma once
// Rotary position embedding of heads, rotate-half form: on the first R <= D lanes, i < R/2,
//   out[i] = x[i] cos[i] - x[i + R/2] sin[i],  out[i + R/2] = x[i + R/2] cos[i] + x[i] sin[i],
// and the other lanes copied. B rows of T positions with H heads of D lanes.
// Source: Su et al., arXiv:2104.09864, Eq. (34), lane i paired with lane i + R/2.
// Needs LibTorch: no. float32 and bfloat16 compute in float32 and round once; float64 runs the
// reference. The same bits for every executor and from run to run.

#include <cstdint>

#include "kernels/common/tensor_view.h"
#include "paperlab/core/parallel.h"

namespace paperlab::kernels {

struct Rope {
  ConstTensorView x;             // [B, T, H, D]
  std::int64_t half = 0;         // R/2
  std::int64_t table_batch = 1;  // 1 or B
  const void* cos = nullptr;     // [table_batch, T, R/2] contiguous, float32 (float64 for float64)
  const void* sin = nullptr;     // likewise
  bool inverse = false;          // sin negated, which is the gradient of the rotation, too
};

// Writes out, contiguous [B, T, H, D] of x's dtype; it does not overlap x.
void rope(const Rope& problem, void* out, const Executor& executor);

// Its check, whatever the device: throws ShapeError unless the problem is as above.
void check_rope(const Rope& problem);

// The definition, in float64 whatever the dtype (reference.cpp).
void rope_reference(const Rope& problem, void* out);

}  // namespace paperlab::kernels
