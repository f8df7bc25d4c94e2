#include "bench/support/attention_gate.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdio>

#include "bench/support/sdpa.h"

namespace paperlab::bench {
namespace {

using kernels::DType;

// Half an ulp of a number in 1..2.
double unit_roundoff(DType dtype) { return dtype == DType::kBFloat16 ? 0x1p-8 : 0x1p-24; }

// NaN is an infinite error.
double largest_error(const std::vector<double>& a, const std::vector<double>& b) {
  double largest = a.size() == b.size() ? 0.0 : INFINITY;
  for (std::size_t i = 0; i < a.size() && i < b.size(); ++i) {
    const double error = std::fabs(a[i] - b[i]);
    largest = std::isnan(error) ? INFINITY : std::max(largest, error);
  }
  return largest;
}

double largest_of(const std::vector<double>& values) {
  return largest_error(values, std::vector<double>(values.size()));
}

// Root of the sum of squares.
double norm(const std::vector<double>& values) {
  double sum = 0.0;
  for (const double value : values) {
    sum += value * value;
  }
  return std::sqrt(sum);
}

std::string text(const char* what, double error, double bound) {
  char line[128];
  std::snprintf(line, sizeof(line), "%s %.3g above %.3g", what, error, bound);
  return line;
}

std::vector<std::vector<double>> results(const AttentionCase& memory, Pass pass,
                                         const Executor& executor) {
  kernels::attention(memory.inputs(), memory.outputs(), executor);
  if (pass == Pass::kForward) {
    return {memory.out()};
  }
  kernels::attention_backward(memory.inputs(), memory.backward_inputs(), memory.gradients(),
                              executor);
  return memory.gradient_values();
}

std::vector<std::vector<double>> exact_results(const AttentionCase& memory, Pass pass) {
  const AttentionCase exact = memory.exact();
  kernels::attention_reference(exact.inputs(), exact.outputs());
  if (pass == Pass::kForward) {
    return {exact.out()};
  }
  kernels::attention_backward_reference(exact.inputs(), exact.backward_inputs(), exact.gradients());
  return exact.gradient_values();
}

std::vector<std::vector<double>> baseline_results(const AttentionCase& memory, Pass pass) {
  Sdpa baseline(memory.inputs(), memory.shape().num_heads == memory.shape().num_kv_heads
                                     ? SdpaForm::kPlain
                                     : SdpaForm::kExpanded);
  if (pass == Pass::kForward) {
    baseline.forward();
    return {baseline.out()};
  }
  baseline.prepare_backward(memory.backward_inputs().grad_out);
  baseline.backward();
  return baseline.gradients();
}

}  // namespace

std::string wrong_on_small_shape(const AttentionShape& like, Pass pass, const Executor& executor) {
  AttentionShape shape = like;
  const std::int64_t shared = like.num_heads / like.num_kv_heads;
  shape.num_kv_heads = 2;
  shape.num_heads = 2 * shared;
  shape.num_keys = 193;  // no multiple of a tile
  shape.num_queries = like.num_queries == 1 ? 1 : 193;
  shape.rule.window = std::min<std::int64_t>(like.rule.window, 77);
  const AttentionCase memory(shape);
  const auto ours = results(memory, pass, executor);
  const auto exact = exact_results(memory, pass);
  const auto baseline = baseline_results(memory, pass);
  for (std::size_t i = 0; i < ours.size(); ++i) {
    // The last term: a baseline that happens to be exact is no reason to fail.
    const double bound = 2.0 * largest_error(baseline[i], exact[i]) +
                         unit_roundoff(shape.dtype) * largest_of(exact[i]);
    const double error = largest_error(ours[i], exact[i]);
    if (!(error <= bound)) {
      return text("error on a small shape", error, bound);
    }
  }
  return "";
}

std::string difference(const std::vector<double>& ours, const std::vector<double>& baseline,
                       const AttentionShape& shape) {
  // A logit s = sum_d q_d k_d / sqrt(D) of normal numbers is off by at most D u sum |q_d k_d| /
  // sqrt(D), about 0.64 D^1.5 u, and a probability relatively by twice that; so is each of the two
  // results. In bfloat16, products are exact and summed in float32; probabilities and their
  // gradients are rounded to bfloat16, as are the results: 4 u for each of the two.
  const double width = static_cast<double>(shape.head_dim);
  const double bound = shape.dtype == DType::kBFloat16
                           ? 8.0 * unit_roundoff(DType::kBFloat16)
                           : 4.0 * 0.64 * std::pow(width, 1.5) * unit_roundoff(shape.dtype);
  const double error = largest_error(ours, baseline) / largest_of(baseline);
  if (!(error <= bound)) {
    return text("largest difference from LibTorch", error, bound);
  }
  std::vector<double> differences(ours.size());
  std::transform(ours.begin(), ours.end(), baseline.begin(), differences.begin(), std::minus<>());
  const double relative = norm(differences) / norm(baseline);
  return relative <= bound ? "" : text("difference from LibTorch", relative, bound);
}

}  // namespace paperlab::bench
