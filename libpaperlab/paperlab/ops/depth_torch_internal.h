#pragma once
// Depth-wise aggregation from LibTorch's operations: tensors on any device, which nothing here
// waits for, of any floating-point dtype. Sums are float32 (float64 for float64) and deterministic
// where LibTorch's products are. C ways, J sources, N tokens of width D, K hidden numbers of a
// generator.

#include <ATen/core/Tensor.h>

#include <array>
#include <cstdint>
#include <functional>

#include "kernels/depth_aggregate/depth_aggregate.h"

namespace paperlab::ops::depth {

// out[c, n] = sum over j of weights[c, n, j] states[j, n], in the dtype of states [J, N, D].
at::Tensor sums_torch(const at::Tensor& states, const at::Tensor& weights);

// Gradients of those sums, given grad [C, N, D]: of the weights [C, N, J], and of the states, of
// which `take` gets tokens first..first + count - 1 at a time, [J, count, D], to keep or change.
// Both in the type of statistics.
at::Tensor weight_gradients_torch(const at::Tensor& grad, const at::Tensor& states);
using TakeStates = std::function<void(std::int64_t first, at::Tensor part)>;
void state_gradients_torch(const at::Tensor& grad, const at::Tensor& weights,
                           std::int64_t num_sources, const TakeStates& take);

// gelu(n w1) w2 + bias of the last dimension of x, n = x inverse_rms; of the type of statistics.
struct GeneratedTorch {
  at::Tensor rows;         // [..., C J]
  at::Tensor z;            // [..., K], n w1
  at::Tensor inverse_rms;  // [...]
};
GeneratedTorch generate_torch(const at::Tensor& x, const at::Tensor& w1, const at::Tensor& w2,
                              const at::Tensor& bias, double eps, kernels::GeluForm gelu);

// What the backward pass reads: matrices of tokens.
struct GeneratorTorch {
  at::Tensor x;   // [N, D]
  at::Tensor w1;  // [D, K]
  at::Tensor w2;  // [K, C J]
  at::Tensor z;
  at::Tensor inverse_rms;
  kernels::GeluForm gelu = kernels::GeluForm::kExact;
};

// Gradients of x, w1, w2 and the bias [C J] in the type of statistics, given those of the rows
// [N, C J]; those that are not wanted are not defined.
std::array<at::Tensor, 4> generate_backward_torch(const GeneratorTorch& in, const at::Tensor& grad,
                                                  const std::array<bool, 4>& wanted);

}  // namespace paperlab::ops::depth
