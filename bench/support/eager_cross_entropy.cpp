#include "bench/support/eager_cross_entropy.h"

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/cross_entropy_loss.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/linear.h>

namespace paperlab::bench {
namespace {

at::Tensor view_of(const void* data, at::IntArrayRef sizes, at::ScalarType dtype) {
  return at::from_blob(const_cast<void*>(data), sizes, at::TensorOptions().dtype(dtype));
}

}  // namespace

struct EagerCrossEntropy::State {
  at::Tensor x;
  at::Tensor weight;
  at::Tensor target;
  at::Tensor loss;

  void run() { loss = at::cross_entropy_loss(at::linear(x, weight), target); }
};

EagerCrossEntropy::EagerCrossEntropy(const kernels::LinearCrossEntropy& problem)
    : state_(std::make_unique<State>(
          State{view_of(problem.x, {problem.num_rows, problem.width}, at::kFloat).requires_grad_(),
                view_of(problem.weight.data, {problem.vocab_size, problem.width}, at::kFloat)
                    .requires_grad_(),
                view_of(problem.target, {problem.num_rows}, at::kLong),
                {}})) {}

EagerCrossEntropy::~EagerCrossEntropy() = default;

void EagerCrossEntropy::forward() {
  const at::NoGradGuard no_grad;
  state_->run();
}

void EagerCrossEntropy::forward_and_backward() {
  state_->x.mutable_grad().reset();
  state_->weight.mutable_grad().reset();
  state_->run();
  state_->loss.backward();
}

double EagerCrossEntropy::loss() const { return state_->loss.item().toDouble(); }
double EagerCrossEntropy::grad_x(std::int64_t at) const {
  return state_->x.grad().const_data_ptr<float>()[at];
}
double EagerCrossEntropy::grad_weight(std::int64_t at) const {
  return state_->weight.grad().const_data_ptr<float>()[at];
}

void set_cross_entropy_threads(int num_threads) { at::set_num_threads(num_threads); }

}  // namespace paperlab::bench
