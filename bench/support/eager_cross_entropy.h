#pragma once
// The baseline of linear_cross_entropy_bench: LibTorch's linear and cross_entropy on the same
// memory, with the whole matrix of logits.

#include <memory>

#include "kernels/linear_cross_entropy/linear_cross_entropy.h"

namespace paperlab::bench {

class EagerCrossEntropy {
 public:
  // Of contiguous tensors in float32, without bias: the mean. The memory must outlive this.
  explicit EagerCrossEntropy(const kernels::LinearCrossEntropy& problem);
  ~EagerCrossEntropy();

  void forward();               // under no-grad
  void forward_and_backward();  // gradients of x and weight

  // Of the last run.
  double loss() const;
  double grad_x(std::int64_t at) const;
  double grad_weight(std::int64_t at) const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// LibTorch's threads inside one operation.
void set_cross_entropy_threads(int num_threads);

}  // namespace paperlab::bench
