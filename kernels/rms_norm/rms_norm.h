#pragma once
// Root-mean-square normalization of rows, with an optional addition before it:
//   s = x + residual,  y = s r weight,  r = 1 / sqrt(mean(s^2) + eps)
// forward and backward. N rows of width W.
// Source: Zhang, Sennrich, NeurIPS 2019, arXiv:1910.07467, Eq. (4).
// Needs LibTorch: no. float32 and bfloat16 accumulate in float32; float64 runs the reference. The
// same bits for every executor and from run to run.

#include <cstdint>

#include "kernels/common/tensor_view.h"
#include "paperlab/core/parallel.h"

namespace paperlab::kernels {

// All tensors are contiguous and of `dtype`, [N, W] unless told.
struct RmsNormForward {
  DType dtype = DType::kFloat32;
  std::int64_t num_rows = 0;
  std::int64_t width = 0;
  double eps = 0.0;
  const void* x = nullptr;
  const void* residual = nullptr;  // absent: nothing is added
  const void* weight = nullptr;    // [W]
  void* y = nullptr;
  void* sum = nullptr;          // s; absent without residual
  void* inverse_rms = nullptr;  // r, [N], float32 (float64 for float64)
};

struct RmsNormBackward {
  DType dtype = DType::kFloat32;
  std::int64_t num_rows = 0;
  std::int64_t width = 0;
  const void* grad_y = nullptr;
  const void* grad_sum = nullptr;  // of s as another result; absent: zeros
  const void* s = nullptr;         // sum, or x where nothing was added
  const void* weight = nullptr;
  const void* inverse_rms = nullptr;
  void* grad_x = nullptr;  // also the residual's
  void* grad_weight = nullptr;
};

// Writes y, sum and inverse_rms.
void rms_norm(const RmsNormForward& problem, const Executor& executor);

// Writes grad_x and grad_weight. The weight's gradient is added up over runs of rows that are a
// function of N alone, in order.
void rms_norm_backward(const RmsNormBackward& problem, const Executor& executor);

// The checks of both, whatever the device: throw ShapeError or ValueError unless the problem is as
// above.
void check_rms_norm(const RmsNormForward& problem);
void check_rms_norm_backward(const RmsNormBackward& problem);

// The definition, in float64 whatever the dtype (reference.cpp).
void rms_norm_reference(const RmsNormForward& problem);
void rms_norm_backward_reference(const RmsNormBackward& problem);

}  // namespace paperlab::kernels
