#pragma once
// The baseline of gemm_bench: LibTorch's linear and matmul on the same memory.

#include <memory>

#include "kernels/gemm/gemm.h"

namespace paperlab::bench {

class EagerLinear {
 public:
  // The problem's memory must outlive this.
  explicit EagerLinear(const kernels::Gemm& problem);
  ~EagerLinear();
  EagerLinear(EagerLinear&&) noexcept;
  EagerLinear& operator=(EagerLinear&&) noexcept;

  void run();                                       // under no-grad
  double at(std::int64_t m, std::int64_t n) const;  // of the last run's result

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// LibTorch's threads inside one operation.
void set_linear_threads(int num_threads);

}  // namespace paperlab::bench
