#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/logsumexp.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <c10/util/Exception.h>

#include <algorithm>

#include "paperlab/ops/linear_cross_entropy_eager_internal.h"

namespace paperlab::ops::eager {
namespace {

using kernels::Reduction;

// Logits of a chunk: 64 MiB in float32.
constexpr std::int64_t kChunkElements = std::int64_t{1} << 24;

at::ScalarType statistics_of(const at::Tensor& x) {
  return x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

// The rows of a problem, [N, D] and [N].
struct Rows {
  explicit Rows(const LinearCrossEntropy& problem)
      : x(problem.x.reshape({problem.target.numel(), problem.x.size(-1)})),
        target(problem.target.reshape({-1})),
        counted(target != problem.ignore_index),
        index(at::where(counted, target, 0)),
        step(std::max<std::int64_t>(1, kChunkElements / problem.weight.size(0))) {}

  std::int64_t count() const { return target.size(0); }

  // Of rows first.., in the dtype of sums.
  at::Tensor logits(const LinearCrossEntropy& problem, std::int64_t first) const {
    const at::ScalarType dtype = statistics_of(problem.x);
    return at::linear(of(x, first).to(dtype), problem.weight.to(dtype),
                      problem.bias.has_value() ? problem.bias->to(dtype) : at::Tensor());
  }

  at::Tensor of(const at::Tensor& all, std::int64_t first) const {
    return all.narrow(0, first, std::min(step, count() - first));
  }

  at::Tensor x;
  at::Tensor target;
  at::Tensor counted;
  at::Tensor index;  // 0 where no target counts
  std::int64_t step;
};

}  // namespace

void check_targets(const char* function, const at::Tensor& target, std::int64_t vocab_size,
                   std::int64_t ignore_index) {
  const at::Tensor bad =
      target.masked_select((target != ignore_index) & ((target < 0) | (target >= vocab_size)));
  TORCH_CHECK_VALUE(bad.numel() == 0, function, ": target must be 0..", vocab_size - 1,
                    " or ignore_index, got ", bad[0].item<std::int64_t>());
}

std::tuple<at::Tensor, at::Tensor> forward(const LinearCrossEntropy& problem) {
  const Rows rows(problem);
  const auto options = problem.x.options().dtype(statistics_of(problem.x));
  const at::Tensor lse = at::empty({rows.count()}, options);
  at::Tensor loss = at::empty({rows.count()}, options);
  for (std::int64_t first = 0; first < rows.count(); first += rows.step) {
    const at::Tensor logits = rows.logits(problem, first);
    const at::Tensor here = at::logsumexp(logits, {1});
    const at::Tensor of_target = logits.gather(1, rows.of(rows.index, first).unsqueeze(1));
    rows.of(lse, first).copy_(here);
    rows.of(loss, first).copy_(here - of_target.squeeze(1) + problem.z_loss * here * here);
  }
  loss = at::where(rows.counted, loss, at::zeros({}, options));
  if (problem.reduction == Reduction::kNone) {
    return {loss.reshape(problem.target.sizes()), lse};
  }
  const at::Tensor sum = loss.sum();
  return {problem.reduction == Reduction::kMean ? sum / rows.counted.sum() : sum, lse};
}

void backward(const LinearCrossEntropy& problem, const at::Tensor& grad_loss, const at::Tensor& lse,
              const std::array<bool, 3>& wanted,
              const std::tuple<at::Tensor, at::Tensor, at::Tensor>& gradients) {
  const Rows rows(problem);
  const at::ScalarType dtype = statistics_of(problem.x);
  const auto options = problem.x.options().dtype(dtype);
  at::Tensor scale = grad_loss.reshape({-1}).expand({rows.count()});
  if (problem.reduction == Reduction::kMean) {
    scale = scale / rows.counted.sum();
  }
  scale = at::where(rows.counted, scale, at::zeros({}, options)).unsqueeze(1);
  const auto& [grad_x, grad_weight, grad_bias] = gradients;
  const at::Tensor x_rows = wanted[0] ? grad_x.view(rows.x.sizes()) : grad_x;
  const at::Tensor weight = problem.weight.to(dtype);
  const at::Tensor of_weight = at::zeros(problem.weight.sizes(), options);
  const at::Tensor of_bias = at::zeros({problem.weight.size(0)}, options);
  for (std::int64_t first = 0; first < rows.count(); first += rows.step) {
    const at::Tensor of_lse = rows.of(lse, first).unsqueeze(1);
    const at::Tensor factor = rows.of(scale, first);
    at::Tensor logits = rows.logits(problem, first).sub_(of_lse).exp_();
    logits.mul_(factor * (1.0 + 2.0 * problem.z_loss * of_lse));
    logits.scatter_add_(1, rows.of(rows.index, first).unsqueeze(1), -factor);
    if (wanted[0]) {
      rows.of(x_rows, first).copy_(logits.matmul(weight));
    }
    if (wanted[1]) {
      of_weight.addmm_(logits.t(), rows.of(rows.x, first).to(dtype));
    }
    if (wanted[2]) {
      of_bias.add_(logits.sum(0));
    }
  }
  if (wanted[1]) {
    grad_weight.copy_(of_weight);
  }
  if (wanted[2] && problem.bias.has_value()) {
    grad_bias.copy_(of_bias);
  }
}

}  // namespace paperlab::ops::eager
