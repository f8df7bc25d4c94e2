#include "bench/support/eager_linear.h"

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/linear.h>

namespace paperlab::bench {
namespace {

at::Tensor tensor_of(const kernels::GemmOperand& of, std::int64_t rows, std::int64_t num_k,
                     kernels::DType dtype) {
  return at::from_blob(
      const_cast<void*>(of.data), {rows, num_k}, {of.row_stride, of.k_stride},
      at::TensorOptions().dtype(dtype == kernels::DType::kFloat32 ? at::kFloat : at::kBFloat16));
}

}  // namespace

struct EagerLinear::State {
  at::Tensor a;
  at::Tensor b;
  at::Tensor c;
};

EagerLinear::EagerLinear(const kernels::Gemm& problem)
    : state_(
          std::make_unique<State>(State{tensor_of(problem.a, problem.m, problem.k, problem.dtype),
                                        tensor_of(problem.b, problem.n, problem.k, problem.dtype),
                                        {}})) {}

EagerLinear::~EagerLinear() = default;
EagerLinear::EagerLinear(EagerLinear&&) noexcept = default;
EagerLinear& EagerLinear::operator=(EagerLinear&&) noexcept = default;

void EagerLinear::run() {
  const at::NoGradGuard no_grad;
  state_->c = at::linear(state_->a, state_->b);
}

double EagerLinear::at(std::int64_t m, std::int64_t n) const {
  return state_->c.select(0, m).select(0, n).item().toDouble();
}

void set_linear_threads(int num_threads) { at::set_num_threads(num_threads); }

}  // namespace paperlab::bench
