// The definition, a row of logits at a time in float64.

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/common/number.h"
#include "kernels/linear_cross_entropy/linear_cross_entropy.h"

namespace paperlab::kernels {
namespace {

std::vector<double> logits_of(const LinearCrossEntropy& problem, std::int64_t row) {
  const auto& [data, row_stride, k_stride] = problem.weight;
  std::vector<double> logits(static_cast<std::size_t>(problem.vocab_size));
  for (std::int64_t v = 0; v < problem.vocab_size; ++v) {
    double sum = problem.bias == nullptr ? 0.0 : load_number(problem.bias, problem.dtype, v);
    for (std::int64_t d = 0; d < problem.width; ++d) {
      sum += load_number(problem.x, problem.dtype, row * problem.width + d) *
             load_number(data, problem.dtype, v * row_stride + d * k_stride);
    }
    logits[static_cast<std::size_t>(v)] = sum;
  }
  return logits;
}

double log_sum_exp(const std::vector<double>& logits) {
  const double most = *std::max_element(logits.begin(), logits.end());
  double sum = 0.0;
  for (const double logit : logits) {
    sum += std::exp(logit - most);
  }
  return most + std::log(sum);
}

std::int64_t num_counted(const LinearCrossEntropy& problem) {
  return problem.num_rows -
         std::count(problem.target, problem.target + problem.num_rows, problem.ignore_index);
}

// Adds `scale` times row `from` of `of` [*, width] to row `row` of sums [*, width].
void add_row(const LinearCrossEntropy& problem, double scale, GemmOperand of, std::int64_t from,
             std::int64_t row, std::vector<double>& sums) {
  for (std::int64_t d = 0; !sums.empty() && d < problem.width; ++d) {
    sums[static_cast<std::size_t>(row * problem.width + d)] +=
        scale * load_number(of.data, problem.dtype, from * of.row_stride + d * of.k_stride);
  }
}

std::vector<double> zeros(const void* wanted, std::int64_t count) {
  return std::vector<double>(wanted == nullptr ? 0 : static_cast<std::size_t>(count));
}

void store_all(const std::vector<double>& from, DType dtype, void* to) {
  for (std::size_t i = 0; i < from.size(); ++i) {
    store_number(to, dtype, static_cast<std::int64_t>(i), from[i]);
  }
}

}  // namespace

void linear_cross_entropy_reference(const LinearCrossEntropy& problem,
                                    const LinearCrossEntropyResult& result) {
  const DType statistics = statistics_dtype(problem.dtype);
  double sum = 0.0;
  for (std::int64_t row = 0; row < problem.num_rows; ++row) {
    const std::vector<double> logits = logits_of(problem, row);
    const double lse = log_sum_exp(logits);
    store_number(result.lse, statistics, row, lse);
    double loss = 0.0;
    const std::int64_t target = problem.target[row];
    if (target != problem.ignore_index) {
      loss = lse - logits[static_cast<std::size_t>(target)] + problem.z_loss * lse * lse;
    }
    sum += loss;
    if (problem.reduction == Reduction::kNone) {
      store_number(result.loss, statistics, row, loss);
    }
  }
  if (problem.reduction != Reduction::kNone) {
    const bool is_mean = problem.reduction == Reduction::kMean;
    store_number(result.loss, statistics, 0,
                 is_mean ? sum / static_cast<double>(num_counted(problem)) : sum);
  }
}

void linear_cross_entropy_backward_reference(const LinearCrossEntropy& problem,
                                             const LinearCrossEntropyGradients& gradients) {
  const DType statistics = statistics_dtype(problem.dtype);
  const std::int64_t width = problem.width;
  std::vector<double> grad_x = zeros(gradients.grad_x, problem.num_rows * width);
  std::vector<double> grad_weight = zeros(gradients.grad_weight, problem.vocab_size * width);
  std::vector<double> grad_bias = zeros(gradients.grad_bias, problem.vocab_size);
  for (std::int64_t row = 0; row < problem.num_rows; ++row) {
    const std::int64_t target = problem.target[row];
    if (target == problem.ignore_index) {
      continue;
    }
    const bool is_none = problem.reduction == Reduction::kNone;
    double grad = load_number(gradients.grad_loss, statistics, is_none ? row : 0);
    if (problem.reduction == Reduction::kMean) {
      grad /= static_cast<double>(num_counted(problem));
    }
    const double lse = load_number(gradients.lse, statistics, row);
    const std::vector<double> logits = logits_of(problem, row);
    for (std::int64_t v = 0; v < problem.vocab_size; ++v) {
      const double p = std::exp(logits[static_cast<std::size_t>(v)] - lse);
      const double of_logit =
          grad * (p * (1.0 + 2.0 * problem.z_loss * lse) - (v == target ? 1.0 : 0.0));
      add_row(problem, of_logit, problem.weight, v, row, grad_x);
      add_row(problem, of_logit, {problem.x, width, 1}, row, v, grad_weight);
      if (!grad_bias.empty()) {
        grad_bias[static_cast<std::size_t>(v)] += of_logit;
      }
    }
  }
  store_all(grad_x, problem.dtype, gradients.grad_x);
  store_all(grad_weight, problem.dtype, gradients.grad_weight);
  store_all(grad_bias, problem.dtype, gradients.grad_bias);
}

}  // namespace paperlab::kernels
