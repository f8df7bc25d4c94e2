#pragma once
// The gated activation of a feed-forward block: y = silu(gate) up, silu(x) = x / (1 + exp(-x)),
// forward and backward. N rows of width F; rows may be apart, so that the halves of one [N, 2F]
// product are read where they lie. Source: Shazeer, arXiv:2002.05202, Eq. (6). Needs LibTorch: no.
// float32 and bfloat16 compute in float32; float64 runs the reference. The same bits for every
// executor and from run to run.

#include <cstdint>

#include "kernels/common/tensor_view.h"
#include "paperlab/core/parallel.h"

namespace paperlab::kernels {

// Row n begins at data + n stride elements; the elements of a row lie side by side.
template <class Void>
struct BasicRows {
  Void* data = nullptr;
  std::int64_t stride = 0;
};
using Rows = BasicRows<const void>;
using MutableRows = BasicRows<void>;

// All tensors are [N, F] of `dtype`.
struct Swiglu {
  DType dtype = DType::kFloat32;
  std::int64_t num_rows = 0;
  std::int64_t width = 0;
  Rows gate;
  Rows up;
};

// Writes y.
void swiglu(const Swiglu& problem, const MutableRows& y, const Executor& executor);

// Writes the gradients of gate and up from that of y.
void swiglu_backward(const Swiglu& problem, const Rows& grad_y, const MutableRows& grad_gate,
                     const MutableRows& grad_up, const Executor& executor);

// Their check, whatever the device: throws ShapeError for a negative size.
void check_swiglu(const Swiglu& problem);

// The definition, in float64 whatever the dtype (reference.cpp).
void swiglu_reference(const Swiglu& problem, const MutableRows& y);
void swiglu_backward_reference(const Swiglu& problem, const Rows& grad_y,
                               const MutableRows& grad_gate, const MutableRows& grad_up);

}  // namespace paperlab::kernels
