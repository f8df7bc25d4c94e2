#pragma once
/// \file
/// The two ways to compute linear_cross_entropy and its gradient: by our kernels and from
/// LibTorch's operations (namespace eager). Arguments were checked by the operator.

#include <ATen/core/Tensor.h>

#include <array>
#include <cstdint>
#include <optional>
#include <tuple>

#include "kernels/linear_cross_entropy/linear_cross_entropy.h"
#include "paperlab/ops/route_internal.h"

namespace paperlab::ops {

/// The arguments as the operator got them.
struct LinearCrossEntropyProblem {
  const at::Tensor& x;
  const at::Tensor& weight;
  const at::Tensor& target;
  const std::optional<at::Tensor>& bias;
  std::int64_t ignore_index;
  kernels::Reduction reduction;
  double z_loss;
};

/// Throws c10::ValueError for a target outside 0..V-1 that is not ignore_index; targets on a GPU
/// are not looked at.
void check_targets(const char* function, const LinearCrossEntropyProblem& problem);

/// Write loss and lse, or the gradients that are wanted: new contiguous tensors. route: kCpu,
/// kCuda.
void forward_by_kernels(Route route, const LinearCrossEntropyProblem& problem,
                        const at::Tensor& loss, const at::Tensor& lse);
void backward_by_kernels(Route route, const LinearCrossEntropyProblem& problem,
                         const at::Tensor& grad_loss, const at::Tensor& lse,
                         const std::array<bool, 3>& wanted,
                         const std::tuple<at::Tensor, at::Tensor, at::Tensor>& gradients);

/// From LibTorch's operations, on chunks of rows and of the vocabulary: for every device and dtype
/// (float16 too), without waiting for the device. Sums are float32 (float64 for float64), and those
/// of gradients lie in the results; of half types, which a GPU multiplies as they are, the logits'
/// gradients are rounded to that type, as by our kernel, relative to the largest gradient of a
/// row's loss, and x's gradient has a float32 copy. Targets that are refused on a GPU make their
/// losses and all gradients of sums over them NaN.
namespace eager {

/// (loss, lse).
std::tuple<at::Tensor, at::Tensor> forward(const LinearCrossEntropyProblem& problem);

/// Writes the gradients of x, weight and bias that are wanted.
void backward(const LinearCrossEntropyProblem& problem, const at::Tensor& grad_loss,
              const at::Tensor& lse, const std::array<bool, 3>& wanted,
              const std::tuple<at::Tensor, at::Tensor, at::Tensor>& gradients);

}  // namespace eager
}  // namespace paperlab::ops
