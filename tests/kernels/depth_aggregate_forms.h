#pragma once
// What tests of the GPU's depth_aggregate ask of it, on a GPU and, block by block, on the CPU: the
// textbook's values within the bounds of depth_aggregate_exact.h.

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "kernels/depth_aggregate/depth_aggregate.h"
#include "kernels/depth_aggregate/tile.h"
#include "tests/kernels/depth_aggregate_cases.h"
#include "tests/kernels/depth_aggregate_exact.h"

namespace paperlab::kernels::depth_test {

constexpr DType kGpuDTypes[] = {DType::kFloat32, DType::kBFloat16, DType::kFloat16,
                                DType::kFloat64};

// The functions of depth_aggregate.h with pointers of the host.
class Forms {
 public:
  Forms() = default;
  virtual ~Forms() = default;
  Forms(const Forms&) = delete;
  Forms& operator=(const Forms&) = delete;

  virtual void weights(const ConnectionWeights& problem, const ConnectionWeightsResult& result) = 0;
  virtual void weights_backward(const ConnectionWeights& problem,
                                const ConnectionWeightsGradients& gradients) = 0;
  virtual void sum(const DepthAggregate& problem, void* const* out) = 0;
  virtual void sum_backward(const DepthAggregate& problem,
                            const DepthAggregateGradients& gradients) = 0;
  virtual void step(const DepthStep& problem, const ConnectionWeightsResult& result,
                    void* const* out) = 0;
  virtual void step_backward(const DepthStep& problem, const DepthStepGradients& gradients) = 0;
};

// Forms that know the memory of a case, and of further tensors.
using MakeForms = std::function<std::unique_ptr<Forms>(Case&, const std::vector<Numbers*>&)>;

inline std::string name(const Case& of) {
  return text(of.shape) + ", dtype " + std::to_string(static_cast<int>(of.dtype));
}

// As on the CPU, odd widths among them, and more sources; some tokens take several warps and steps.
inline const std::vector<Shape>& gpu_sum_shapes() {
  static const std::vector<Shape> all = {{0, 17, 3, 4, 0},   {1, 1, 1, 1, 0},    {300, 1, 5, 4, 0},
                                         {7, 2, 2, 3, 0},    {33, 17, 7, 3, 0},  {9, 64, 33, 4, 0},
                                         {65, 24, 4, 1, 0},  {7, 257, 26, 4, 0}, {3, 1040, 6, 4, 0},
                                         {2, 2560, 3, 4, 0}, {7, 72, 8, 6, 0},   {5, 513, 3, 2, 0},
                                         {1, 40, 131, 9, 0}};
  return all;
}

inline const std::vector<Shape>& gpu_generator_shapes() {
  static const std::vector<Shape> all = {{0, 17, 3, 4, 8},   {1, 1, 1, 1, 1},    {7, 17, 5, 2, 8},
                                         {33, 64, 9, 4, 36}, {70, 72, 4, 5, 68}, {33, 1, 3, 4, 12},
                                         {5, 257, 3, 2, 1}};
  return all;
}

// Weights that all tokens share.
inline const std::vector<Shape>& gpu_static_shapes() {
  static const std::vector<Shape> all = {
      {33, 70, 5, 4, 0}, {1100, 8, 3, 1, 0}, {0, 3, 2, 2, 0}, {2, 264, 9, 6, 0}};
  return all;
}

inline const std::vector<Shape>& gpu_step_shapes() {
  static const std::vector<Shape> all = {{33, 64, 9, 4, 36}, {7, 17, 5, 2, 8}, {5, 520, 2, 1, 0}};
  return all;
}

inline const std::vector<Shape>& gpu_turned_shapes() {
  static const std::vector<Shape> all = {{33, 64, 9, 4, 36}, {7, 17, 5, 2, 9}};
  return all;
}

inline void expect_right_sum(const MakeForms& make, Case& of, std::int64_t num_added) {
  SCOPED_TRACE(name(of));
  std::vector<Numbers> before;
  for (std::int64_t source = 0; source < of.shape.j; ++source) {
    before.push_back(Numbers::random(of.dtype, of.shape.n * of.shape.d, 300 + source, 1.0));
    if (source < num_added) {
      of.grad_sources[static_cast<std::size_t>(source)] = before.back();
    }
  }
  of.point();
  const auto forms = make(of, {});
  forms->sum(of.sum(), of.out_at.data());
  forms->sum_backward(of.sum(), of.sum_gradients(num_added));
  for (std::int64_t way = 0; way < of.shape.c; ++way) {
    expect_close(of.out[static_cast<std::size_t>(way)], exact_stream(of, way),
                 static_cast<double>(of.shape.j), of.statistics, of.dtype, "out");
  }
  for (std::int64_t source = 0; source < of.shape.j; ++source) {
    const auto at = static_cast<std::size_t>(source);
    Exact exact = exact_grad_source(of, source < num_added ? &before[at] : nullptr, source);
    const double half_ulp = of.dtype == DType::kBFloat16 ? 0x1p-8 : 0x1p-11;
    for (double& norm : exact.norm) {  // stored again for each further four ways
      const std::int64_t rounds = (of.shape.c - 1) / kMostWays;
      norm += of.statistics == of.dtype
                  ? 0.0
                  : norm * static_cast<double>(rounds) * half_ulp / (eps_of(of.statistics) * 24.0);
    }
    expect_close(of.grad_sources[at], exact, static_cast<double>(of.shape.c), of.statistics,
                 of.dtype, "grad_source");
  }
  expect_close(of.grad_weights, exact_grad_weights(of), static_cast<double>(of.shape.d),
               of.statistics, of.statistics, "grad_weights");
}

// Weights that all tokens share, of the sources' dtype, and their gradients.
inline void expect_right_static_weights(const MakeForms& make, Case& of) {
  SCOPED_TRACE(name(of));
  for (std::int64_t i = 0; i < of.weights.count(); ++i) {
    of.weights.set(i, of.bias.at(i % of.num_weights()));
  }
  DepthStep step = of.step();
  step.aggregate.weights = of.bias.data();
  step.aggregate.weights_dtype = of.dtype;
  step.aggregate.token_stride = 0;
  step.generator.x = nullptr;
  of.grad_weights = Numbers(of.statistics, of.num_weights());
  const auto forms = make(of, {});
  forms->step(step, {}, of.out_at.data());
  forms->step_backward(step, of.step_gradients());
  for (std::int64_t way = 0; way < of.shape.c; ++way) {
    expect_close(of.out[static_cast<std::size_t>(way)], exact_stream(of, way),
                 static_cast<double>(of.shape.j), of.statistics, of.dtype, "out");
  }
  Exact sums(of.num_weights());
  const Exact of_tokens = exact_grad_weights(of);
  for (std::int64_t i = 0; i < of.shape.n * of.num_weights(); ++i) {
    sums.add(i % of.num_weights(), of_tokens(i), of_tokens.norm_at(i));
  }
  const auto terms = static_cast<double>(of.shape.d + of.shape.n);
  expect_close(of.grad_weights, sums, terms, of.statistics, of.statistics, "grad_weights");
  expect_close(of.grad_bias, sums, terms, of.statistics, of.dtype, "grad_bias");
}

// The weights and everything that comes back from them. A float32 number on the tensor cores is the
// sum of two of 11 bits: what is left out is below 2^-21 of a product, 4 of the 24 eps.
inline void expect_right_generator(const MakeForms& make, Case& of) {
  SCOPED_TRACE(name(of));
  const auto& [n, d, j, c, k] = of.shape;
  of.weights = Numbers(of.statistics, of.weights.count());
  of.grad_weights = Numbers::random(of.statistics, of.grad_weights.count(), 5, 1.0);
  const auto forms = make(of, {});
  forms->weights(of.generator(), of.generated());
  const ExactWeights exact_weights(of);
  expect_close(of.z, exact_weights.z, static_cast<double>(d), of.statistics, of.statistics, "z");
  expect_close(of.weights, exact_weights.weights, static_cast<double>(k), of.statistics,
               of.statistics, "weights");
  ConnectionWeightsGradients gradients = of.generator_gradients();
  gradients.grad_x = of.grad_source_at.back();
  forms->weights_backward(of.generator(), gradients);
  const ExactGradients exact(of);
  const auto per_token = static_cast<double>(of.num_weights() + k + d);
  const double terms = per_token + static_cast<double>(n);
  expect_close(of.grad_sources.back(), exact.x, per_token, of.statistics, of.dtype, "grad_x");
  expect_close(of.grad_w1, exact.w1, terms, of.statistics, of.dtype, "grad_w1");
  expect_close(of.grad_w2, exact.w2, terms, of.statistics, of.dtype, "grad_w2");
  expect_close(of.grad_bias, exact.bias, terms, of.statistics, of.dtype, "grad_bias");
}

// The same bits as its parts have, the newest state being written on the way.
inline void expect_step_is_its_parts(const MakeForms& make, Case& whole) {
  SCOPED_TRACE(name(whole));
  Case parts = whole;
  const std::int64_t count = whole.shape.n * whole.shape.d;
  Numbers base = Numbers::random(whole.dtype, count, 20, 1.0);
  Numbers delta = Numbers::random(whole.dtype, count, 21, 1.0);
  for (std::int64_t i = 0; i < count; ++i) {
    parts.sources.back().set(i, base.at(i) + delta.at(i));
  }
  whole.sources.back() = Numbers(whole.dtype, count);
  whole.point();
  parts.point();
  DepthStep step = whole.step();
  step.base = base.data();
  step.delta = delta.data();
  step.newest = whole.sources.back().data();
  {
    const auto forms = make(whole, {&base, &delta});
    forms->step(step, whole.generated(), whole.out_at.data());
    forms->step_backward(step, whole.step_gradients());
  }
  EXPECT_TRUE(whole.sources.back() == parts.sources.back());
  const auto forms = make(parts, {});
  forms->weights(parts.generator(), parts.generated());
  forms->sum(parts.sum(), parts.out_at.data());
  forms->sum_backward(parts.sum(), parts.sum_gradients());
  ConnectionWeightsGradients gradients = parts.generator_gradients();
  gradients.grad_x = parts.grad_source_at.back();
  gradients.adds_to_grad_x = true;
  forms->weights_backward(parts.generator(), gradients);
  EXPECT_TRUE(same_results(whole, parts));
}

// w1 and w2 as linear layers have them.
inline void expect_same_with_turned_matrices(const MakeForms& make, Case& of) {
  SCOPED_TRACE(name(of));
  const auto& [n, d, j, c, k] = of.shape;
  const auto turned_over = [&](const Numbers& matrix, std::int64_t rows, std::int64_t columns) {
    Numbers turned(of.dtype, rows * columns);
    for (std::int64_t i = 0; i < rows * columns; ++i) {
      turned.set(i % columns * rows + i / columns, matrix.at(i));
    }
    return turned;
  };
  Case turned = of;
  turned.w1 = turned_over(of.w1, d, k);
  turned.w2 = turned_over(of.w2, k, c * j);
  DepthStep step = turned.step();
  step.generator.is_transposed = true;
  const auto of_turned = make(turned, {});
  of_turned->step(step, turned.generated(), turned.out_at.data());
  of_turned->step_backward(step, turned.step_gradients());
  const auto forms = make(of, {});
  forms->step(of.step(), of.generated(), of.out_at.data());
  forms->step_backward(of.step(), of.step_gradients());
  EXPECT_TRUE(turned.weights == of.weights && turned.z == of.z && turned.out == of.out);
  EXPECT_TRUE(turned.grad_sources == of.grad_sources && turned.grad_bias == of.grad_bias);
  const ExactGradients exact(of);
  const auto terms = static_cast<double>(of.num_weights() + k + d + n);
  expect_close(turned_over(turned.grad_w1, k, d), exact.w1, terms, of.statistics, of.dtype,
               "grad_w1");
  expect_close(turned_over(turned.grad_w2, c * j, k), exact.w2, terms, of.statistics, of.dtype,
               "grad_w2");
}

// Calls check(case) of each shape in each of the GPU's dtypes.
template <class Check>
void for_gpu_cases(const std::vector<Shape>& shapes, Check check) {
  for (const DType dtype : kGpuDTypes) {
    for (const Shape& shape : shapes) {
      Case of(dtype, shape);
      check(of);
    }
  }
}

}  // namespace paperlab::kernels::depth_test
