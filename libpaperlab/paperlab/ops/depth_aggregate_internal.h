#pragma once
// What the sum over one tensor of all states and that over a list of states share.

#include <ATen/core/Tensor.h>
#include <c10/core/SymInt.h>

#include <cstdint>
#include <vector>

#include "paperlab/ops/route_internal.h"

namespace paperlab::ops::depth {

void check_weights(const char* function, const at::Tensor& weights, const c10::SymInt& batch,
                   const c10::SymInt& length, const c10::SymInt& num_sources);

// [J, B, T, D] as [J, B T, D], and the like: a view where that is one.
at::Tensor tokens_of(const at::Tensor& x);

// The sum from LibTorch's operations.
at::Tensor sum_torch(const at::Tensor& states, const at::Tensor& weights);

// Who sums J states like x. Tensors without elements on a GPU go through LibTorch's operations.
Route route_of_sum(const at::Tensor& x, std::int64_t num_sources);

// x as kernels read it: each of x[0], x[1], ... contiguous, wherever it lies.
at::Tensor readable(const at::Tensor& x);

// These by where they begin.
std::vector<const void*> parts_of(const at::Tensor& x);
std::vector<void*> mutable_parts_of(const at::Tensor& x);

// Our kernels on J contiguous sources [B, T, D] of the dtype and device of out [C, B, T, D], which
// has elements, and its gradients: of the sources that are not null, and of the weights if wanted.
void sum_by_kernel(Route route, const std::vector<const void*>& sources, const at::Tensor& weights,
                   const at::Tensor& out);
void gradients_by_kernel(Route route, const at::Tensor& grad_out,
                         const std::vector<const void*>& sources, const at::Tensor& weights,
                         const std::vector<void*>& grad_sources, at::Tensor* grad_weights);

}  // namespace paperlab::ops::depth
