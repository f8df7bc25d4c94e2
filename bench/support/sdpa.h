#pragma once
// The baseline: LibTorch's scaled_dot_product_attention on the same memory, and the operator that
// autograd calls for its gradient.

#include <memory>
#include <string>
#include <vector>

#include "kernels/attention/attention.h"

namespace paperlab::bench {

// How query heads that share a key/value head are given to LibTorch.
enum class SdpaForm {
  kPlain,     // as many key heads as query heads
  kGrouped,   // enable_gqa
  kExpanded,  // key heads repeated by strides of zero, the group's number as batch
  kRows,      // a single query only: the heads of a group as the rows of one
};

class Sdpa {
 public:
  // Batch 1. The inputs' memory must outlive this. A window becomes a mask of [T, S].
  explicit Sdpa(const kernels::AttentionInputs& inputs, SdpaForm form = SdpaForm::kPlain);
  ~Sdpa();
  Sdpa(Sdpa&&) noexcept;
  Sdpa& operator=(Sdpa&&) noexcept;

  void forward();                   // under no-grad
  std::vector<double> out() const;  // [H, T, D]

  // kPlain. One forward pass that keeps what the gradient needs; then gradients, as often as
  // wanted.
  void prepare_backward(const kernels::ConstTensorView& grad_out);
  void backward();
  std::vector<std::vector<double>> gradients() const;  // of query, key, value

  std::string backend() const;  // that forward() chooses: "flash for CPU" or "math"

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// LibTorch's threads inside one operation.
void set_sdpa_threads(int num_threads);

// "AVX512", "AVX2", ...: the instruction set that LibTorch's own kernels use.
std::string sdpa_capability();

}  // namespace paperlab::bench
