#pragma once
// The cross-entropy of a linear map's rows from LibTorch's operators, on chunks of rows: for
// devices without a kernel of ours.

#include <ATen/core/Tensor.h>

#include <array>
#include <cstdint>
#include <optional>
#include <tuple>

#include "kernels/linear_cross_entropy/linear_cross_entropy.h"

namespace paperlab::ops::eager {

// Arguments that were checked, as the operator got them.
struct LinearCrossEntropy {
  const at::Tensor& x;
  const at::Tensor& weight;
  const at::Tensor& target;
  const std::optional<at::Tensor>& bias;
  std::int64_t ignore_index;
  kernels::Reduction reduction;
  double z_loss;
};

// Throws c10::ValueError for a target outside 0..vocab_size-1 that is not ignore_index.
void check_targets(const char* function, const at::Tensor& target, std::int64_t vocab_size,
                   std::int64_t ignore_index);

// (loss, lse).
std::tuple<at::Tensor, at::Tensor> forward(const LinearCrossEntropy& problem);

// Writes the gradients of x, weight and bias that are wanted.
void backward(const LinearCrossEntropy& problem, const at::Tensor& grad_loss, const at::Tensor& lse,
              const std::array<bool, 3>& wanted,
              const std::tuple<at::Tensor, at::Tensor, at::Tensor>& gradients);

}  // namespace paperlab::ops::eager
