#pragma once
// Cases of depth_aggregate and its generator: shapes, inputs, and results that start as NaN between
// guard zones.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "kernels/common/number.h"
#include "kernels/depth_aggregate/depth_aggregate.h"
#include "kernels/gemm/gemm.h"
#include "paperlab/core/parallel.h"
#include "paperlab/core/rng.h"
#include "tests/support/isa.h"

namespace paperlab::kernels::depth_test {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr std::int64_t kGuard = 64;  // bytes on either side of a tensor

constexpr DType kDTypes[] = {DType::kFloat32, DType::kBFloat16, DType::kFloat64};

inline std::int64_t bytes_of(DType dtype) {
  return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2;
}

// Numbers between guard zones; all bytes are 0xFF, NaN in every dtype, until they are set.
class Numbers {
 public:
  Numbers() = default;
  Numbers(DType dtype, std::int64_t count)
      : dtype_(dtype),
        count_(count),
        bytes_(static_cast<std::size_t>(count * bytes_of(dtype) + 2 * kGuard), std::byte{0xFF}) {}

  static Numbers random(DType dtype, std::int64_t count, std::uint64_t stream, double scale) {
    Numbers numbers(dtype, count);
    constexpr std::int64_t kDifferent = 65521;  // then they repeat
    for (std::int64_t i = 0; i < count; ++i) {
      numbers.set(i, i < kDifferent
                         ? scale * philox_normal(11, stream, static_cast<std::uint64_t>(i))
                         : numbers.at(i - kDifferent));
    }
    return numbers;
  }

  void* data() { return bytes_.data() + kGuard; }
  const void* data() const { return bytes_.data() + kGuard; }
  std::vector<std::byte>& bytes() { return bytes_; }  // with the guards
  std::int64_t count() const { return count_; }
  double at(std::int64_t i) const { return load_number(data(), dtype_, i); }
  void set(std::int64_t i, double value) { store_number(data(), dtype_, i, value); }
  void fill(double value) {
    for (std::int64_t i = 0; i < count_; ++i) {
      set(i, value);
    }
  }
  bool has_guards() const {
    const auto is_untouched = [](std::byte byte) { return byte == std::byte{0xFF}; };
    return std::all_of(bytes_.begin(), bytes_.begin() + kGuard, is_untouched) &&
           std::all_of(bytes_.end() - kGuard, bytes_.end(), is_untouched);
  }
  bool operator==(const Numbers& other) const { return bytes_ == other.bytes_; }

 private:
  DType dtype_ = DType::kFloat32;
  std::int64_t count_ = 0;
  std::vector<std::byte> bytes_;
};

struct Shape {
  std::int64_t n;
  std::int64_t d;
  std::int64_t j;
  std::int64_t c;
  std::int64_t k;
};

inline std::string text(const Shape& of) {
  return "N " + std::to_string(of.n) + ", D " + std::to_string(of.d) + ", J " +
         std::to_string(of.j) + ", C " + std::to_string(of.c) + ", K " + std::to_string(of.k);
}

inline const std::vector<Shape>& shapes() {
  static const std::vector<Shape> all = {
      {0, 17, 3, 4, 8},   {1, 1, 1, 1, 1},     {1, 64, 26, 4, 100},  {7, 2, 2, 3, 8},
      {7, 17, 5, 2, 8},   {33, 64, 9, 4, 36},  {33, 257, 4, 1, 100}, {7, 257, 26, 4, 128},
      {33, 17, 7, 3, 21}, {3, 1040, 6, 4, 24}, {7, 64, 8, 6, 33},    {33, 1, 3, 4, 12},
      {5, 513, 3, 2, 1},  {9, 32, 10, 5, 50}};
  return all;
}

// Inputs, and results that start as NaN.
struct Case {
  Case(DType type, Shape of, double scale = 1.0) : dtype(type), shape(of) {
    const auto& [n, d, j, c, k] = of;
    for (std::int64_t source = 0; source < j; ++source) {
      sources.push_back(Numbers::random(type, n * d, 100 + source, scale));
      grad_sources.emplace_back(type, n * d);
    }
    for (std::int64_t way = 0; way < c; ++way) {
      out.emplace_back(type, n * d);
      grad_out.push_back(Numbers::random(type, n * d, 200 + way, 1.0));
    }
    w1 = Numbers::random(type, d * k, 1, 1.0 / std::sqrt(static_cast<double>(d)));
    w2 = Numbers::random(type, k * c * j, 2, 1.0 / std::sqrt(static_cast<double>(k + 1)));
    bias = Numbers::random(type, c * j, 3, 1.0);
    statistics = statistics_dtype(type);
    weights = Numbers::random(statistics, n * c * j, 4, 1.0);
    z = Numbers(statistics, n * k);
    inverse_rms = Numbers(statistics, n);
    grad_weights = Numbers(statistics, n * c * j);
    grad_w1 = Numbers(type, d * k);
    grad_w2 = Numbers(type, k * c * j);
    grad_bias = Numbers(type, c * j);
    point();
  }
  Case(const Case& other) { *this = other; }
  Case& operator=(const Case& other) {
    dtype = other.dtype;
    statistics = other.statistics;
    shape = other.shape;
    gelu = other.gelu;
    sources = other.sources;
    out = other.out;
    grad_out = other.grad_out;
    grad_sources = other.grad_sources;
    w1 = other.w1;
    w2 = other.w2;
    bias = other.bias;
    weights = other.weights;
    z = other.z;
    inverse_rms = other.inverse_rms;
    grad_weights = other.grad_weights;
    grad_w1 = other.grad_w1;
    grad_w2 = other.grad_w2;
    grad_bias = other.grad_bias;
    point();
    return *this;
  }

  void point() {
    source_at.clear();
    out_at.clear();
    grad_out_at.clear();
    grad_source_at.clear();
    for (Numbers& numbers : sources) {
      source_at.push_back(numbers.data());
    }
    for (Numbers& numbers : out) {
      out_at.push_back(numbers.data());
    }
    for (Numbers& numbers : grad_out) {
      grad_out_at.push_back(numbers.data());
    }
    for (Numbers& numbers : grad_sources) {
      grad_source_at.push_back(numbers.data());
    }
  }

  std::int64_t num_weights() const { return shape.c * shape.j; }

  DepthAggregate sum() const {
    return {dtype,          shape.n,    shape.d,       shape.j, shape.c, source_at.data(),
            weights.data(), statistics, num_weights(), shape.j};
  }
  DepthAggregateGradients sum_gradients(std::int64_t num_added = 0) {
    return {grad_out_at.data(), grad_source_at.data(), num_added, grad_weights.data()};
  }
  ConnectionWeights generator() const {
    return {dtype, shape.n,          shape.d,   shape.k,   num_weights(), 1e-6,
            gelu,  source_at.back(), w1.data(), w2.data(), bias.data()};
  }
  ConnectionWeightsResult generated() { return {weights.data(), z.data(), inverse_rms.data()}; }
  ConnectionWeightsGradients generator_gradients() {
    return {z.data(), inverse_rms.data(), grad_weights.data(), nullptr,
            false,    grad_w1.data(),     grad_w2.data(),      grad_bias.data()};
  }
  DepthStep step() const { return {generator(), sum()}; }
  DepthStepGradients step_gradients(std::int64_t num_added = 0) {
    return {sum_gradients(num_added), generator_gradients()};
  }

  void run_step(const Executor& executor, std::int64_t num_added = 0) {
    depth_step(step(), generated(), out_at.data(), executor);
    depth_step_backward(step(), step_gradients(num_added), gemm, executor);
  }

  std::vector<const Numbers*> results() const {
    std::vector<const Numbers*> all = {&weights, &z,       &inverse_rms, &grad_weights,
                                       &grad_w1, &grad_w2, &grad_bias};
    for (const std::vector<Numbers>* group : {&out, &grad_sources}) {
      for (const Numbers& numbers : *group) {
        all.push_back(&numbers);
      }
    }
    return all;
  }

  DType dtype;
  DType statistics;
  Shape shape;
  GeluForm gelu = GeluForm::kExact;
  std::vector<Numbers> sources;
  std::vector<Numbers> out;
  std::vector<Numbers> grad_out;
  std::vector<Numbers> grad_sources;
  Numbers w1;
  Numbers w2;
  Numbers bias;
  Numbers weights;
  Numbers z;
  Numbers inverse_rms;
  Numbers grad_weights;
  Numbers grad_w1;
  Numbers grad_w2;
  Numbers grad_bias;
  std::vector<const void*> source_at;
  std::vector<void*> out_at;
  std::vector<const void*> grad_out_at;
  std::vector<void*> grad_source_at;
};

inline bool same_results(const Case& a, const Case& b) {
  const auto of_a = a.results();
  const auto of_b = b.results();
  for (std::size_t i = 0; i < of_a.size(); ++i) {
    if (!(*of_a[i] == *of_b[i])) {
      return false;
    }
  }
  return true;
}

class IsaTest : public testing::TestWithParam<CpuIsa> {
 protected:
  void SetUp() override {
    if (!test::is_available(GetParam())) {
      GTEST_SKIP() << test::missing(GetParam());
    }
  }
};

}  // namespace paperlab::kernels::depth_test
