#pragma once
// Cross-entropy of a linear map's rows without the matrix of logits: with l = x weight^T + bias
// [N, V] and lse = ln sum over v of e^l,
//   loss = lse - l[target] + z_loss lse^2        for each row whose target counts,
//   dl   = dloss (e^(l - lse) (1 + 2 z_loss lse) - onehot(target)),
// their sum, or their mean over the rows that count. Logits exist for a chunk of rows and columns
// at a time; the backward pass computes them again.
// Source: online log-sum-exp (Milakov, Gimelshein, arXiv:1805.02867); chunks of the vocabulary
// (Wijmans et al., arXiv:2411.09009).
// Needs LibTorch: no. float32 and bfloat16 accumulate in float32, float64 in float64. The same bits
// for every executor and from run to run if the injected product has them.

#include <cstdint>

#include "kernels/common/gemm_problem.h"

namespace paperlab::kernels {

enum class Reduction : std::uint8_t { kNone, kSum, kMean };

// N rows of width D, V columns of logits.
struct LinearCrossEntropy {
  DType dtype = DType::kFloat32;
  std::int64_t num_rows = 0;
  std::int64_t width = 0;
  std::int64_t vocab_size = 0;
  const void* x = nullptr;               // [N, D], contiguous
  GemmOperand weight;                    // [V, D]; in bfloat16 rows are contiguous
  const void* bias = nullptr;            // [V], contiguous; absent: zeros
  const std::int64_t* target = nullptr;  // [N]
  std::int64_t ignore_index = -100;      // the target of rows that do not count
  Reduction reduction = Reduction::kMean;
  double z_loss = 0.0;
};

// Both float32, float64 for float64.
struct LinearCrossEntropyResult {
  void* loss = nullptr;  // [N] without reduction, 0 for rows that do not count; else [1]
  void* lse = nullptr;   // [N]
};

// Contiguous; what is absent is not wanted.
struct LinearCrossEntropyGradients {
  const void* grad_loss = nullptr;  // as loss
  const void* lse = nullptr;
  void* grad_x = nullptr;       // [N, D], dtype
  void* grad_weight = nullptr;  // [V, D]
  void* grad_bias = nullptr;    // [V]
};

// Writes loss and lse. A mean of no rows is NaN.
// Throws ShapeError for negative sizes or V < 1, ValueError for a target outside 0..V-1 that is
// not ignore_index, or strides of which none is 1.
void linear_cross_entropy(const LinearCrossEntropy& problem, const LinearCrossEntropyResult& result,
                          GemmFunction multiply, const Executor& executor);

// Writes the gradients that are wanted; rows that do not count have none.
void linear_cross_entropy_backward(const LinearCrossEntropy& problem,
                                   const LinearCrossEntropyGradients& gradients,
                                   GemmFunction multiply, const Executor& executor);

// The row of the first target that is refused, or -1.
std::int64_t first_bad_target(const std::int64_t* target, std::int64_t num_rows,
                              std::int64_t vocab_size, std::int64_t ignore_index);

// The definition, in float64 whatever the dtype, with whole rows of logits (reference.cpp).
void linear_cross_entropy_reference(const LinearCrossEntropy& problem,
                                    const LinearCrossEntropyResult& result);
void linear_cross_entropy_backward_reference(const LinearCrossEntropy& problem,
                                             const LinearCrossEntropyGradients& gradients);

}  // namespace paperlab::kernels
