#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/logsumexp.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>

#include <algorithm>

#include "paperlab/ops/dispatch_rules_internal.h"
#include "paperlab/ops/kernel_dtype_internal.h"
#include "paperlab/ops/linear_cross_entropy_internal.h"

namespace paperlab::ops::eager {
namespace {

using kernels::Reduction;

// Logits of a chunk: 64 MiB in float32.
constexpr std::int64_t kChunkElements = std::int64_t{1} << 24;

// The rows of a problem, [N, D] and [N]; the weight and the bias in the dtype of sums.
struct Rows {
  explicit Rows(const LinearCrossEntropyProblem& problem)
      : dtype(statistics_dtype(problem.x.scalar_type())),
        x(problem.x.reshape({problem.target.numel(), problem.x.size(-1)})),
        weight(problem.weight.to(dtype)),
        bias(problem.bias.has_value() ? problem.bias->to(dtype) : at::Tensor()),
        counted(problem.target.reshape({-1}) != problem.ignore_index),
        index(at::where(counted, problem.target.reshape({-1}), 0).clamp(0, weight.size(0) - 1)),
        step(std::max<std::int64_t>(1, kChunkElements / weight.size(0))) {}

  std::int64_t count() const { return index.size(0); }

  // Of rows first.., in the dtype of sums.
  at::Tensor logits(std::int64_t first) const { return at::linear(inputs(first), weight, bias); }

  at::Tensor inputs(std::int64_t first) const { return of(x, first).to(dtype); }

  at::Tensor of(const at::Tensor& all, std::int64_t first) const {
    return all.narrow(0, first, std::min(step, count() - first));
  }

  at::ScalarType dtype;
  at::Tensor x;
  at::Tensor weight;
  at::Tensor bias;
  at::Tensor counted;
  at::Tensor index;  // 0 where no target counts
  std::int64_t step;
};

}  // namespace

std::tuple<at::Tensor, at::Tensor> forward(const LinearCrossEntropyProblem& problem) {
  const autocast::Off guard;
  const Rows rows(problem);
  const auto options = problem.x.options().dtype(rows.dtype);
  const at::Tensor lse = at::empty({rows.count()}, options);
  at::Tensor loss = at::empty({rows.count()}, options);
  for (std::int64_t first = 0; first < rows.count(); first += rows.step) {
    const at::Tensor logits = rows.logits(first);
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

void backward(const LinearCrossEntropyProblem& problem, const at::Tensor& grad_loss,
              const at::Tensor& lse, const std::array<bool, 3>& wanted,
              const std::tuple<at::Tensor, at::Tensor, at::Tensor>& gradients) {
  const autocast::Off guard;
  const Rows rows(problem);
  const auto options = problem.x.options().dtype(rows.dtype);
  at::Tensor scale = grad_loss.reshape({-1}).expand({rows.count()});
  if (problem.reduction == Reduction::kMean) {
    scale = scale / rows.counted.sum();
  }
  scale = at::where(rows.counted, scale, at::zeros({}, options)).unsqueeze(1);
  const auto& [grad_x, grad_weight, grad_bias] = gradients;
  const at::Tensor x_rows = wanted[0] ? grad_x.view(rows.x.sizes()) : grad_x;
  const at::Tensor of_weight =
      wanted[1] ? at::zeros(problem.weight.sizes(), options) : at::Tensor();
  const at::Tensor of_bias = at::zeros({problem.weight.size(0)}, options);
  for (std::int64_t first = 0; first < rows.count(); first += rows.step) {
    const at::Tensor of_lse = rows.of(lse, first).unsqueeze(1);
    const at::Tensor factor = rows.of(scale, first);
    at::Tensor logits = rows.logits(first).sub_(of_lse).exp_();
    logits.mul_(factor * (1.0 + 2.0 * problem.z_loss * of_lse));
    logits.scatter_add_(1, rows.of(rows.index, first).unsqueeze(1), -factor);
    if (wanted[0]) {
      rows.of(x_rows, first).copy_(logits.matmul(rows.weight));
    }
    if (wanted[1]) {
      of_weight.addmm_(logits.t(), rows.inputs(first));
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
