#pragma once
// A step of depth_step.h without autograd: by our kernel, or by LibTorch's operations.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "kernels/depth_aggregate/depth_aggregate.h"
#include "paperlab/ops/route_internal.h"

namespace paperlab::ops::depth {

// A step without its tensors.
struct Step {
  std::int64_t slot = 0;              // i
  std::int64_t first = 0;             // states from here on have gradients
  std::vector<std::int64_t> sources;  // J, or none: no streams
  std::int64_t num_ways = 0;          // C
  double eps = 1e-6;
  kernels::GeluForm gelu = kernels::GeluForm::kExact;

  std::int64_t num_sources() const { return static_cast<std::int64_t>(sources.size()); }
};

// What the forward pass leaves for the backward pass, whoever computes either.
struct Generated {
  at::Tensor w1;           // [D, K], any strides, or not defined
  at::Tensor w2;           // [K, C J], likewise
  at::Tensor weights;      // [N, C J] of statistics' type; given: the bias, contiguous
  at::Tensor z;            // [N, K]
  at::Tensor inverse_rms;  // [N]

  bool is_given() const { return !w1.defined(); }
};

struct Computed {
  std::vector<at::Tensor> streams;
  Generated generated;
};

// Whether w1 and w2 are views of contiguous [K, D] and [C J, K], as linear layers have them: then
// they are read where they lie, and their gradients lie likewise.
bool lie_transposed(const at::Tensor& w1, const at::Tensor& w2);

// Gradients of w1, w2 and the bias, of w1 and w2 as lie_transposed says, else contiguous; not
// defined: not wanted.
struct ParameterGradients {
  at::Tensor w1;
  at::Tensor w2;
  at::Tensor bias;
};

// The two halves of a step, computed as route_of("depth_step", slots) says. Tensors without memory,
// or without elements on a GPU, go through LibTorch's operations.
//
// Writes X_i = base + delta, or base, into its slot of [>= i + 1, B, T, D] and makes its streams.
Computed compute(const Step& step, const at::Tensor& slots, const at::Tensor& base,
                 const at::Tensor& delta, const at::Tensor& w1, const at::Tensor& w2,
                 const at::Tensor& bias);

// Adds to `gradients` of states first..i, or overwrites those of the sources, what the streams
// send; writes the parameters' gradients that are wanted. A stream's gradient may be absent.
void compute_backward(const Step& step, const at::Tensor& slots, const Generated& generated,
                      at::ArrayRef<at::Tensor> grad_streams, const at::Tensor& gradients, bool adds,
                      const ParameterGradients& parameters);

// Only X_i.
void write_newest(const at::Tensor& slot, const at::Tensor& base, const at::Tensor& delta);

// The same by our kernel of `route`, kCpu or kCuda, where there are sources.
Computed compute_by_kernel(Route route, const Step& step, const at::Tensor& slots,
                           const at::Tensor& base, const at::Tensor& delta, const at::Tensor& w1,
                           const at::Tensor& w2, const at::Tensor& bias);
void compute_backward_by_kernel(Route route, const Step& step, const at::Tensor& slots,
                                const Generated& generated, at::ArrayRef<at::Tensor> grad_streams,
                                const at::Tensor& gradients, bool adds,
                                const ParameterGradients& parameters);

// The same by LibTorch's operations on the slots' device, where there are sources.
Computed compute_torch(const Step& step, const at::Tensor& slots, const at::Tensor& base,
                       const at::Tensor& delta, const at::Tensor& w1, const at::Tensor& w2,
                       const at::Tensor& bias);
void compute_backward_torch(const Step& step, const at::Tensor& slots, const Generated& generated,
                            at::ArrayRef<at::Tensor> grad_streams, const at::Tensor& gradients,
                            bool adds, const ParameterGradients& parameters);

}  // namespace paperlab::ops::depth
