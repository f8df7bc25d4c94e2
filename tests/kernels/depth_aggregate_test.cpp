#include "kernels/depth_aggregate/depth_aggregate.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>
#include <numeric>
#include <string>
#include <vector>

#include "kernels/common/number.h"
#include "kernels/depth_aggregate/tile.h"
#include "kernels/gemm/gemm.h"
#include "paperlab/core/error.h"
#include "paperlab/core/parallel.h"
#include "paperlab/core/rng.h"
#include "tests/support/isa.h"

namespace paperlab::kernels {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr std::int64_t kGuard = 64;  // bytes on either side of a tensor

std::int64_t bytes_of(DType dtype) {
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

std::string text(const Shape& of) {
  return "N " + std::to_string(of.n) + ", D " + std::to_string(of.d) + ", J " +
         std::to_string(of.j) + ", C " + std::to_string(of.c) + ", K " + std::to_string(of.k);
}

const std::vector<Shape>& shapes() {
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
    depth_step(step(), generated(), out_at.data(), gemm, executor);
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

bool same_results(const Case& a, const Case& b) {
  const auto of_a = a.results();
  const auto of_b = b.results();
  for (std::size_t i = 0; i < of_a.size(); ++i) {
    if (!(*of_a[i] == *of_b[i])) {
      return false;
    }
  }
  return true;
}

double eps_of(DType dtype) { return dtype == DType::kFloat64 ? 0x1p-52 : 0x1p-23; }

// Exact values, and the sums of absolute values that errors are relative to.
struct Exact {
  explicit Exact(std::int64_t count)
      : value(static_cast<std::size_t>(count)), norm(static_cast<std::size_t>(count)) {}
  void add(std::int64_t at, double term) { add(at, term, std::fabs(term)); }
  void add(std::int64_t at, double term, double of_norm) {
    value[static_cast<std::size_t>(at)] += term;
    norm[static_cast<std::size_t>(at)] += of_norm;
  }
  double operator()(std::int64_t at) const { return value[static_cast<std::size_t>(at)]; }
  double norm_at(std::int64_t at) const { return norm[static_cast<std::size_t>(at)]; }

  std::vector<double> value;
  std::vector<double> norm;
};

// A sum of `terms` products and some further roundings is within eps (terms + 24) of the sum of
// their absolute values; what is stored as bfloat16 has half an ulp more.
void expect_close(const Numbers& actual, const Exact& exact, double terms, DType of_sums,
                  DType stored, const std::string& name) {
  ASSERT_EQ(static_cast<std::size_t>(actual.count()), exact.value.size()) << name;
  EXPECT_TRUE(actual.has_guards()) << name;
  const double half_ulp = stored == DType::kBFloat16 ? 0x1p-8 : 0.0;
  for (std::int64_t i = 0; i < actual.count(); ++i) {
    const double bound = eps_of(of_sums) * (terms + 24.0) * exact.norm_at(i) * (1.0 + half_ulp) +
                         half_ulp * std::fabs(exact(i));
    const double error = std::fabs(actual.at(i) - exact(i));
    ASSERT_TRUE(error <= bound) << name << "[" << i << "]: got " << actual.at(i) << ", exact "
                                << exact(i) << ", bound " << bound;
  }
}

// The textbook, written for tensors that lie as a Case has them.
Exact exact_stream(const Case& of, std::int64_t way) {
  const auto& [n, d, j, c, k] = of.shape;
  Exact stream(n * d);
  for (std::int64_t i = 0; i < n * d; ++i) {
    for (std::int64_t source = 0; source < j; ++source) {
      stream.add(i, of.weights.at(i / d * c * j + way * j + source) *
                        of.sources[static_cast<std::size_t>(source)].at(i));
    }
  }
  return stream;
}

Exact exact_grad_source(const Case& of, const Numbers* before, std::int64_t source) {
  const auto& [n, d, j, c, k] = of.shape;
  Exact grad(n * d);
  for (std::int64_t i = 0; i < n * d; ++i) {
    if (before != nullptr) {
      grad.add(i, before->at(i));
    }
    for (std::int64_t way = 0; way < c; ++way) {
      grad.add(i, of.weights.at(i / d * c * j + way * j + source) *
                      of.grad_out[static_cast<std::size_t>(way)].at(i));
    }
  }
  return grad;
}

Exact exact_grad_weights(const Case& of) {
  const auto& [n, d, j, c, k] = of.shape;
  Exact grad(n * c * j);
  for (std::int64_t i = 0; i < n * c * j; ++i) {
    for (std::int64_t at = i / (c * j) * d; at < (i / (c * j) + 1) * d; ++at) {
      grad.add(i, of.grad_out[static_cast<std::size_t>(i % (c * j) / j)].at(at) *
                      of.sources[static_cast<std::size_t>(i % j)].at(at));
    }
  }
  return grad;
}

struct Gelu {
  double value;
  double slope;
};

Gelu exact_gelu(double z, GeluForm form) {
  if (form == GeluForm::kExact) {
    const double normal = 0.5 * std::erfc(-z / std::numbers::sqrt2);
    return {z * normal, normal + z * std::exp(-0.5 * z * z) / std::sqrt(2.0 * std::numbers::pi)};
  }
  const double scale = std::sqrt(2.0 / std::numbers::pi);
  const double s = 1.0 / (1.0 + std::exp(-2.0 * scale * (z + 0.044715 * z * z * z)));
  return {z * s, s + z * s * (1.0 - s) * 2.0 * scale * (1.0 + 3.0 * 0.044715 * z * z)};
}

// What the generator makes, given the z that it has stored.
struct ExactWeights {
  explicit ExactWeights(const Case& of)
      : z(of.shape.n * of.shape.k), weights(of.shape.n * of.num_weights()) {
    const auto& [n, d, j, c, k] = of.shape;
    for (std::int64_t token = 0; token < n; ++token) {
      double squares = 0.0;
      for (std::int64_t i = 0; i < d; ++i) {
        squares += std::pow(of.sources.back().at(token * d + i), 2);
      }
      const double r = 1.0 / std::sqrt(squares / static_cast<double>(d) + 1e-6);
      for (std::int64_t i = 0; i < d * k; ++i) {
        z.add(token * k + i % k, of.sources.back().at(token * d + i / k) * r * of.w1.at(i));
      }
      for (std::int64_t i = 0; i < c * j; ++i) {
        weights.add(token * c * j + i, of.bias.at(i));
      }
      for (std::int64_t i = 0; i < k * c * j; ++i) {
        const double value = of.z.at(token * k + i / (c * j));
        // gelu's own error is relative to |z|.
        weights.add(token * c * j + i % (c * j), exact_gelu(value, of.gelu).value * of.w2.at(i),
                    std::fabs(value * of.w2.at(i)));
      }
    }
  }
  Exact z;
  Exact weights;
};

// The generator's gradients, given grad_weights, z and inverse_rms.
struct ExactGradients {
  explicit ExactGradients(const Case& of)
      : x(of.shape.n * of.shape.d),
        w1(of.shape.d * of.shape.k),
        w2(of.shape.k * of.num_weights()),
        bias(of.num_weights()) {
    for (std::int64_t token = 0; token < of.shape.n; ++token) {
      add(of, token);
    }
  }

  void add(const Case& of, std::int64_t token) {
    const auto& [n, d, j, c, k] = of.shape;
    const double r = k > 0 ? of.inverse_rms.at(token) : 0.0;
    Exact grad_z(k);
    for (std::int64_t i = 0; i < c * j; ++i) {
      const double grad = of.grad_weights.at(token * c * j + i);
      bias.add(i, grad);
      for (std::int64_t h = 0; h < k; ++h) {
        const double value = of.z.at(token * k + h);
        const auto [activation, slope] = exact_gelu(value, of.gelu);
        w2.add(h * c * j + i, activation * grad, std::fabs(value * grad));
        const double of_h = grad * of.w2.at(h * c * j + i);
        grad_z.add(h, of_h * slope, std::fabs(of_h) * (1.0 + std::fabs(slope)));
      }
    }
    Exact grad_n(d);
    double mean = 0.0;
    double mean_norm = 0.0;
    for (std::int64_t i = 0; i < d; ++i) {
      const double normal = of.sources.back().at(token * d + i) * r;
      for (std::int64_t h = 0; h < k; ++h) {
        w1.add(i * k + h, normal * grad_z(h), std::fabs(normal) * grad_z.norm_at(h));
        const double weight = of.w1.at(i * k + h);
        grad_n.add(i, grad_z(h) * weight, grad_z.norm_at(h) * std::fabs(weight));
      }
      mean += grad_n(i) * normal / static_cast<double>(d);
      mean_norm += grad_n.norm_at(i) * std::fabs(normal) / static_cast<double>(d);
    }
    for (std::int64_t i = 0; i < d; ++i) {
      const double normal = of.sources.back().at(token * d + i) * r;
      x.add(token * d + i, r * (grad_n(i) - normal * mean),
            r * (grad_n.norm_at(i) + std::fabs(normal) * mean_norm));
    }
  }

  Exact x;
  Exact w1;
  Exact w2;
  Exact bias;
};

class DepthAggregateTest : public testing::TestWithParam<CpuIsa> {
 protected:
  void SetUp() override {
    if (!test::is_available(GetParam())) {
      GTEST_SKIP() << test::missing(GetParam());
    }
  }
};

constexpr DType kDTypes[] = {DType::kFloat32, DType::kBFloat16, DType::kFloat64};

void expect_right_sum(Case& of, std::int64_t num_added) {
  const DType statistics = of.statistics;
  const auto terms = static_cast<double>(of.shape.j);
  depth_aggregate(of.sum(), of.out_at.data(), *default_executor());
  for (std::int64_t way = 0; way < of.shape.c; ++way) {
    expect_close(of.out[static_cast<std::size_t>(way)], exact_stream(of, way), terms, statistics,
                 of.dtype, "out");
  }
  std::vector<Numbers> before;
  for (std::int64_t source = 0; source < of.shape.j; ++source) {
    before.push_back(Numbers::random(of.dtype, of.shape.n * of.shape.d, 300 + source, 1.0));
    if (source < num_added) {
      of.grad_sources[static_cast<std::size_t>(source)] = before.back();
    }
  }
  of.point();
  depth_aggregate_backward(of.sum(), of.sum_gradients(num_added), *default_executor());
  for (std::int64_t source = 0; source < of.shape.j; ++source) {
    const auto at = static_cast<std::size_t>(source);
    Exact exact = exact_grad_source(of, source < num_added ? &before[at] : nullptr, source);
    if (of.dtype == DType::kBFloat16 && of.shape.c > kMostWays) {
      for (double& norm : exact.norm) {  // stored twice: four ways, then the others
        norm += norm * 0x1p-8 / (eps_of(of.statistics) * 24.0);
      }
    }
    expect_close(of.grad_sources[at], exact, static_cast<double>(of.shape.c), statistics, of.dtype,
                 "grad_source");
  }
  expect_close(of.grad_weights, exact_grad_weights(of), static_cast<double>(of.shape.d), statistics,
               statistics, "grad_weights");
}

TEST_P(DepthAggregateTest, TheSumAndItsGradientsAreWithinTheBound) {
  const test::ScopedIsa isa(GetParam());
  for (const DType dtype : kDTypes) {
    for (const Shape& shape : shapes()) {
      SCOPED_TRACE(text(shape) + ", dtype " + std::to_string(static_cast<int>(dtype)));
      Case of(dtype, shape);
      expect_right_sum(of, shape.n % shape.j);
    }
  }
}

TEST_P(DepthAggregateTest, LargeStatesAreSummedInFloat32) {
  const test::ScopedIsa isa(GetParam());
  Case of(DType::kBFloat16, {5, 70, 12, 4, 8}, 1e4);
  expect_right_sum(of, 12);
}

TEST_P(DepthAggregateTest, TheGeneratorIsWithinTheBound) {
  const test::ScopedIsa isa(GetParam());
  for (const DType dtype : kDTypes) {
    for (const Shape& shape : shapes()) {
      for (const GeluForm gelu : {GeluForm::kExact, GeluForm::kTanh}) {
        SCOPED_TRACE(text(shape) + ", dtype " + std::to_string(static_cast<int>(dtype)));
        Case of(dtype, shape);
        of.gelu = gelu;
        of.weights = Numbers(of.statistics, of.weights.count());
        connection_weights(of.generator(), of.generated(), gemm, *default_executor());
        const ExactWeights exact(of);
        expect_close(of.z, exact.z, static_cast<double>(shape.d), of.statistics, of.statistics,
                     "z");
        expect_close(of.weights, exact.weights, static_cast<double>(shape.k), of.statistics,
                     of.statistics, "weights");
      }
    }
  }
}

void expect_right_generator_gradients(Case& of) {
  connection_weights(of.generator(), of.generated(), gemm, *default_executor());
  of.grad_weights = Numbers::random(of.statistics, of.grad_weights.count(), 5, 1.0);
  ConnectionWeightsGradients gradients = of.generator_gradients();
  gradients.grad_x = of.grad_source_at.back();
  connection_weights_backward(of.generator(), gradients, gemm, *default_executor());
  const ExactGradients exact(of);
  // The state's gradient uses mean(dN N) = dZ Z / D: sums of C J, K and D products.
  const auto per_token = static_cast<double>(of.num_weights() + of.shape.k + of.shape.d);
  const double terms = per_token + static_cast<double>(of.shape.n);
  expect_close(of.grad_sources.back(), exact.x, per_token, of.statistics, of.dtype, "grad_x");
  expect_close(of.grad_w1, exact.w1, terms, of.statistics, of.dtype, "grad_w1");
  expect_close(of.grad_w2, exact.w2, terms, of.statistics, of.dtype, "grad_w2");
  expect_close(of.grad_bias, exact.bias, terms, of.statistics, of.dtype, "grad_bias");
}

TEST_P(DepthAggregateTest, TheGeneratorsGradientsAreWithinTheBound) {
  const test::ScopedIsa isa(GetParam());
  for (const DType dtype : kDTypes) {
    for (const Shape& shape : shapes()) {
      for (const GeluForm gelu : {GeluForm::kExact, GeluForm::kTanh}) {
        SCOPED_TRACE(text(shape) + ", dtype " + std::to_string(static_cast<int>(dtype)));
        Case of(dtype, shape);
        of.gelu = gelu;
        expect_right_generator_gradients(of);
      }
    }
  }
  Case several_passes(DType::kBFloat16, {tokens_of_pass(3) + 5, 3, 2, 1, 2});
  expect_right_generator_gradients(several_passes);
}

TEST_P(DepthAggregateTest, AStepIsItsParts) {
  const test::ScopedIsa isa(GetParam());
  for (const DType dtype : kDTypes) {
    for (const Shape& shape : shapes()) {
      SCOPED_TRACE(text(shape));
      Case whole(dtype, shape);
      Case parts = whole;
      Numbers base = Numbers::random(dtype, shape.n * shape.d, 20, 1.0);
      Numbers delta = Numbers::random(dtype, shape.n * shape.d, 21, 1.0);
      for (std::int64_t i = 0; i < base.count(); ++i) {
        parts.sources.back().set(i, base.at(i) + delta.at(i));
      }
      whole.sources.back() = Numbers(dtype, shape.n * shape.d);
      whole.point();
      DepthStep step = whole.step();
      step.base = base.data();
      step.delta = delta.data();
      step.newest = whole.sources.back().data();
      depth_step(step, whole.generated(), whole.out_at.data(), gemm, *default_executor());
      depth_step_backward(step, whole.step_gradients(), gemm, *default_executor());
      EXPECT_TRUE(whole.sources.back() == parts.sources.back());
      connection_weights(parts.generator(), parts.generated(), gemm, *default_executor());
      depth_aggregate(parts.sum(), parts.out_at.data(), *default_executor());
      depth_aggregate_backward(parts.sum(), parts.sum_gradients(), *default_executor());
      ConnectionWeightsGradients gradients = parts.generator_gradients();
      gradients.grad_x = parts.grad_source_at.back();
      gradients.adds_to_grad_x = true;
      connection_weights_backward(parts.generator(), gradients, gemm, *default_executor());
      EXPECT_TRUE(same_results(whole, parts));
    }
  }
}

TEST_P(DepthAggregateTest, BitsDoNotDependOnTheExecutor) {
  const test::ScopedIsa isa(GetParam());
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16}) {
    for (const Shape& shape :
         {Shape{700, 70, 5, 4, 20}, Shape{9000, 3, 2, 1, 2}, Shape{61, 1040, 3, 2, 6}}) {
      Case one(dtype, shape);
      Case two = one;
      Case three = one;
      one.run_step(serial_executor());
      two.run_step(ThreadPool(2));
      three.run_step(ThreadPool(3));
      EXPECT_TRUE(same_results(one, two) && same_results(one, three)) << text(shape);
    }
  }
}

// Weights of all tokens alike, of either dtype, and their gradient.
TEST_P(DepthAggregateTest, StaticWeights) {
  const test::ScopedIsa isa(GetParam());
  for (const DType dtype : kDTypes) {
    for (const Shape& shape : {Shape{33, 70, 5, 4, 0}, Shape{700, 64, 3, 1, 0},
                               Shape{0, 3, 2, 2, 0}, Shape{2, 1040, 9, 6, 0}}) {
      SCOPED_TRACE(text(shape));
      Case of(dtype, shape);
      for (std::int64_t i = 0; i < of.weights.count(); ++i) {
        of.weights.set(i, of.bias.at(i % of.num_weights()));
      }
      DepthStep step = of.step();
      step.aggregate.weights = of.bias.data();
      step.aggregate.weights_dtype = dtype;
      step.aggregate.token_stride = 0;
      step.generator.x = nullptr;
      of.grad_weights = Numbers(of.statistics, of.num_weights());
      depth_step(step, {}, of.out_at.data(), gemm, ThreadPool(2));
      depth_step_backward(step, of.step_gradients(), gemm, ThreadPool(2));
      Case dynamic = of;
      dynamic.grad_weights = Numbers(of.statistics, shape.n * of.num_weights());
      depth_aggregate(dynamic.sum(), dynamic.out_at.data(), serial_executor());
      depth_aggregate_backward(dynamic.sum(), dynamic.sum_gradients(), serial_executor());
      EXPECT_TRUE(of.out == dynamic.out && of.grad_sources == dynamic.grad_sources);
      Exact sums(of.num_weights());
      const Exact of_tokens = exact_grad_weights(of);
      for (std::int64_t i = 0; i < shape.n * of.num_weights(); ++i) {
        sums.add(i % of.num_weights(), of_tokens(i), of_tokens.norm_at(i));
      }
      const auto terms = static_cast<double>(shape.d + shape.n);
      expect_close(of.grad_weights, sums, terms, of.statistics, of.statistics, "grad_weights");
      expect_close(of.grad_bias, sums, terms, of.statistics, dtype, "grad_bias");
    }
  }
}

TEST_P(DepthAggregateTest, WithoutAGeneratorWeightsAreTheBias) {
  const test::ScopedIsa isa(GetParam());
  for (const DType dtype : kDTypes) {
    Case of(dtype, {7, 19, 3, 2, 0});
    of.run_step(serial_executor());
    Exact sums(of.num_weights());
    for (std::int64_t i = 0; i < of.weights.count(); ++i) {
      EXPECT_EQ(of.weights.at(i), of.bias.at(i % of.num_weights()));
      sums.add(i % of.num_weights(), of.grad_weights.at(i));
    }
    expect_close(of.grad_bias, sums, 7.0, of.statistics, dtype, "grad_bias");
  }
}

// A gradient that is absent is zeros as a stream's, and not wanted as a source's.
TEST_P(DepthAggregateTest, AbsentGradients) {
  const test::ScopedIsa isa(GetParam());
  for (const DType dtype : kDTypes) {
    for (const unsigned absent : {1U, 2U, 5U, 13U, 15U, 63U}) {
      for (const std::int64_t num_added : {0, 2, 5}) {
        Case zeros(dtype, {6, 530, 5, absent == 63U ? 6 : 4, 0});
        for (std::size_t source = 0; source < 5; ++source) {
          zeros.grad_sources[source] =
              Numbers::random(dtype, zeros.grad_sources[source].count(), 300 + source, 1.0);
        }
        for (std::size_t way = 0; way < zeros.grad_out.size(); ++way) {
          if ((absent >> way & 1U) != 0) {
            zeros.grad_out[way].fill(0.0);
          }
        }
        zeros.point();
        Case left_out = zeros;
        for (std::size_t way = 0; way < zeros.grad_out.size(); ++way) {
          if ((absent >> way & 1U) != 0) {
            left_out.grad_out_at[way] = nullptr;
          }
        }
        const Numbers untouched = left_out.grad_sources[3];
        left_out.grad_source_at[3] = nullptr;
        depth_aggregate_backward(zeros.sum(), zeros.sum_gradients(num_added), serial_executor());
        depth_aggregate_backward(left_out.sum(), left_out.sum_gradients(num_added),
                                 serial_executor());
        EXPECT_TRUE(left_out.grad_sources[3] == untouched);
        for (std::int64_t source = 0; source < 5; ++source) {
          const auto at = static_cast<std::size_t>(source);
          for (std::int64_t i = 0; i < untouched.count() && source != 3; ++i) {
            ASSERT_EQ(zeros.grad_sources[at].at(i), left_out.grad_sources[at].at(i));
          }
        }
        for (std::int64_t i = 0; i < zeros.grad_weights.count(); ++i) {
          ASSERT_EQ(zeros.grad_weights.at(i), left_out.grad_weights.at(i));
        }
        DepthAggregateGradients none = left_out.sum_gradients(num_added);
        none.grad_sources = nullptr;
        Case only_weights = left_out;
        none.grad_weights = only_weights.grad_weights.data();
        depth_aggregate_backward(left_out.sum(), none, serial_executor());
        EXPECT_TRUE(only_weights.grad_weights == left_out.grad_weights);
        DepthAggregateGradients only_sources = left_out.sum_gradients(0);
        only_sources.grad_weights = nullptr;
        depth_aggregate_backward(left_out.sum(), only_sources, serial_executor());
      }
    }
  }
}

// Results that nobody wants are not asked for.
TEST_P(DepthAggregateTest, ParametersWithoutGradients) {
  const test::ScopedIsa isa(GetParam());
  for (const DType dtype : kDTypes) {
    Case all(dtype, {9, 33, 3, 4, 12});
    Case some = all;
    all.run_step(serial_executor());
    ConnectionWeightsResult result = some.generated();
    result.z = nullptr;
    result.inverse_rms = nullptr;
    depth_step(some.step(), result, some.out_at.data(), gemm, serial_executor());
    EXPECT_TRUE(some.out == all.out && some.weights == all.weights);
    some.run_step(serial_executor());
    some.grad_w1 = Numbers(dtype, some.grad_w1.count());
    DepthStepGradients gradients = some.step_gradients();
    gradients.generator.grad_w1 = nullptr;
    gradients.aggregate.grad_sources = nullptr;
    some.grad_w2.fill(0.0);
    depth_step_backward(some.step(), gradients, gemm, serial_executor());
    EXPECT_TRUE(some.grad_w2 == all.grad_w2 && some.grad_bias == all.grad_bias);
    EXPECT_TRUE(some.grad_w1 == Numbers(dtype, some.grad_w1.count()));
  }
}

// [C, N, J], as a tensor of weights by ways lies.
TEST_P(DepthAggregateTest, WeightsByWay) {
  const test::ScopedIsa isa(GetParam());
  for (const DType dtype : kDTypes) {
    Case of(dtype, {7, 40, 3, 4, 0});
    Case by_way = of;
    for (std::int64_t i = 0; i < of.weights.count(); ++i) {
      by_way.weights.set(i / 3 % 4 * 21 + i / 12 * 3 + i % 3, of.weights.at(i));
    }
    DepthAggregate sum = by_way.sum();
    sum.token_stride = 3;
    sum.way_stride = 21;
    depth_aggregate(of.sum(), of.out_at.data(), serial_executor());
    depth_aggregate_backward(of.sum(), of.sum_gradients(), serial_executor());
    depth_aggregate(sum, by_way.out_at.data(), serial_executor());
    depth_aggregate_backward(sum, by_way.sum_gradients(), serial_executor());
    EXPECT_TRUE(of.out == by_way.out && of.grad_sources == by_way.grad_sources);
    for (std::int64_t i = 0; i < of.weights.count(); ++i) {
      EXPECT_EQ(by_way.grad_weights.at(i / 3 % 4 * 21 + i / 12 * 3 + i % 3), of.grad_weights.at(i));
    }
  }
}

TEST_P(DepthAggregateTest, OrderOfTheSourcesIsFree) {
  const test::ScopedIsa isa(GetParam());
  Case of(DType::kFloat32, {7, 65, 6, 4, 24});
  Case turned = of;  // the newest stays where it is
  const std::int64_t order[] = {3, 0, 4, 1, 2, 5};
  for (std::int64_t i = 0; i < 6; ++i) {
    turned.sources[static_cast<std::size_t>(i)] = of.sources[static_cast<std::size_t>(order[i])];
    for (std::int64_t row = 0; row < 100; ++row) {  // of w2 and, last, of the bias
      Numbers& to = row < 96 ? turned.w2 : turned.bias;
      const Numbers& from = row < 96 ? of.w2 : of.bias;
      to.set(row % 96 * 6 + i, from.at(row % 96 * 6 + order[i]));
    }
  }
  turned.point();
  of.run_step(serial_executor());
  turned.run_step(serial_executor());
  for (std::int64_t way = 0; way < 4; ++way) {
    expect_close(turned.out[static_cast<std::size_t>(way)], exact_stream(of, way), 6.0,
                 DType::kFloat32, DType::kFloat32, "out");
  }
}

TEST_P(DepthAggregateTest, OneHotWeightsGiveTheNewestStateItself) {
  const test::ScopedIsa isa(GetParam());
  for (const DType dtype : kDTypes) {
    Case of(dtype, {9, 50, 5, 4, 20});
    of.w2.fill(0.0);
    for (std::int64_t i = 0; i < 20; ++i) {
      of.bias.set(i, i % 5 == 4 ? 1.0 : 0.0);
    }
    of.run_step(serial_executor());
    for (const Numbers& stream : of.out) {
      EXPECT_TRUE(stream == of.sources.back());
    }
    for (std::int64_t i = 0; i < of.grad_w1.count(); ++i) {
      EXPECT_EQ(of.grad_w1.at(i), 0.0);
    }
  }
}

TEST_P(DepthAggregateTest, AStateOfZerosHasTheBiasAsWeights) {
  const test::ScopedIsa isa(GetParam());
  for (const DType dtype : kDTypes) {
    Case of(dtype, {4, 20, 2, 3, 6});
    of.sources.back().fill(0.0);
    of.run_step(serial_executor());
    for (std::int64_t i = 0; i < of.weights.count(); ++i) {
      EXPECT_EQ(of.weights.at(i), of.bias.at(i % 6));
    }
    for (const Numbers* result : of.results()) {
      for (std::int64_t i = 0; i < result->count(); ++i) {
        EXPECT_TRUE(std::isfinite(result->at(i)));
      }
    }
  }
}

TEST_P(DepthAggregateTest, NanStaysWhereItIs) {
  const test::ScopedIsa isa(GetParam());
  for (const DType dtype : kDTypes) {
    Case of(dtype, {5, 40, 4, 2, 8});
    of.sources[1].set(87, kNaN);  // token 2
    depth_step(of.step(), of.generated(), of.out_at.data(), gemm, serial_executor());
    for (const Numbers& stream : of.out) {
      for (std::int64_t i = 0; i < stream.count(); ++i) {
        EXPECT_EQ(std::isnan(stream.at(i)), i == 87);
      }
    }
    of.sources[3].set(160, kNaN);  // the newest: all weights of its token
    depth_step(of.step(), of.generated(), of.out_at.data(), gemm, serial_executor());
    for (const Numbers& stream : of.out) {
      for (std::int64_t i = 0; i < stream.count(); ++i) {
        EXPECT_EQ(std::isnan(stream.at(i)), i == 87 || i >= 160);
      }
    }
  }
}

// Large streams are stored past the caches: the same bits, at any address.
TEST_P(DepthAggregateTest, LargeStreams) {
  const test::ScopedIsa isa(GetParam());
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16}) {
    const std::int64_t width = dtype == DType::kFloat32 ? 1024 : 2048;
    const Shape shape = {300, width, 2, 4, 0};
    const std::int64_t bytes = 4 * shape.n * shape.d * bytes_of(dtype);
    ASSERT_TRUE(is_stored_past_caches(bytes) && !is_stored_past_caches(bytes / 2));
    Case of(dtype, shape);
    std::vector<Numbers> streams;
    for (const std::int64_t shift : {std::int64_t{0}, bytes_of(dtype)}) {
      std::vector<std::vector<std::byte>> memory(
          4, std::vector<std::byte>(static_cast<std::size_t>(of.out[0].count() * bytes_of(dtype)) +
                                    128));
      std::vector<void*> out;
      for (std::vector<std::byte>& bytes : memory) {
        const auto misfit =
            static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(bytes.data()) % 64);
        out.push_back(bytes.data() + (64 - misfit) + shift);
      }
      depth_aggregate(of.sum(), out.data(), ThreadPool(2));
      for (std::size_t way = 0; way < 4; ++way) {
        Numbers stream(dtype, of.out[0].count());
        std::memcpy(stream.data(), out[way],
                    static_cast<std::size_t>(stream.count() * bytes_of(dtype)));
        streams.push_back(stream);
      }
    }
    const std::int64_t half = 150 * width * bytes_of(dtype);
    for (const std::int64_t first : {std::int64_t{0}, half}) {  // small enough for plain stores
      DepthAggregate part = of.sum();
      part.num_tokens = 150;
      std::vector<const void*> sources = of.source_at;
      std::vector<void*> out = of.out_at;
      for (const void*& source : sources) {
        source = static_cast<const std::byte*>(source) + first;
      }
      for (void*& stream : out) {
        stream = static_cast<std::byte*>(stream) + first;
      }
      part.sources = sources.data();
      part.weights = static_cast<const float*>(part.weights) + (first == 0 ? 0 : 150 * 8);
      depth_aggregate(part, out.data(), serial_executor());
    }
    for (std::size_t i = 0; i < streams.size(); ++i) {
      EXPECT_TRUE(streams[i] == of.out[i % 4]) << i;
    }
  }
}

// D 2, X = (3, 4): the numbers of the definition by hand.
TEST_P(DepthAggregateTest, ClosedForm) {
  const test::ScopedIsa isa(GetParam());
  for (const DType dtype : {DType::kFloat32, DType::kFloat64}) {
    Case of(dtype, {1, 2, 2, 1, 2});
    const double values[] = {1.0, 0.0, 0.0, 1.0};
    for (std::int64_t i = 0; i < 4; ++i) {
      of.w1.set(i, values[i]);
      of.w2.set(i, values[i]);
    }
    of.bias.set(0, 0.0);
    of.bias.set(1, 1.0);
    of.sources[0].set(0, 1.0);
    of.sources[0].set(1, 0.0);
    of.sources[1].set(0, 3.0);
    of.sources[1].set(1, 4.0);
    depth_step(of.step(), of.generated(), of.out_at.data(), gemm, serial_executor());
    const double bound = dtype == DType::kFloat32 ? 2e-6 : 1e-9;
    EXPECT_NEAR(1.0 / of.inverse_rms.at(0), 3.5355340473, bound);
    EXPECT_NEAR(of.z.at(0), 0.8485281035, bound);
    EXPECT_NEAR(of.z.at(1), 1.1313708046, bound);
    EXPECT_NEAR(of.weights.at(0), 0.6804584755, bound);
    EXPECT_NEAR(of.weights.at(1), 1.9854810744, bound);
    EXPECT_NEAR(of.out[0].at(0), 6.6369016985, 4.0 * bound);
    EXPECT_NEAR(of.out[0].at(1), 7.9419242973, 4.0 * bound);
    of.gelu = GeluForm::kTanh;
    connection_weights(of.generator(), of.generated(), gemm, serial_executor());
    EXPECT_NEAR(of.weights.at(0), 0.6803587185, bound);
    EXPECT_NEAR(of.weights.at(1), 1.9852853317, bound);
  }
}

TEST_P(DepthAggregateTest, GeluOfLargeNumbers) {
  const test::ScopedIsa isa(GetParam());
  for (const GeluForm gelu : {GeluForm::kExact, GeluForm::kTanh}) {
    // z runs through multiples of 0.3: w2 is 1, so the weight is gelu(z).
    Case of(DType::kFloat32, {1, 1, 1, 1, 1});
    of.gelu = gelu;
    of.w2.set(0, 1.0);
    of.bias.set(0, 0.0);
    of.sources[0].set(0, 1e6);  // 1 after the norm
    for (std::int64_t i = -100; i <= 100; ++i) {
      of.w1.set(0, 0.3 * static_cast<double>(i));
      connection_weights(of.generator(), of.generated(), gemm, serial_executor());
      const double exact = exact_gelu(of.z.at(0), gelu).value;
      // Far to the left the exponential's argument has a rounding error of z^2 ulps.
      const double relative = 0x1p-23 * (8.0 + std::pow(of.z.at(0), 2));
      const double bound =
          of.z.at(0) < 0.0 ? relative * std::fabs(exact) + 1e-30 : 4.0 * 0x1p-23 * exact;
      // The cubic form in the tanh has about three times that.
      EXPECT_NEAR(of.weights.at(0), exact, gelu == GeluForm::kTanh ? 8.0 * bound + 1e-30 : bound)
          << of.z.at(0);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Isas, DepthAggregateTest, testing::ValuesIn(test::all_isas()),
                         test::isa_name);

// Central differences in float64: the loss is the sum of the streams times their gradients.
double loss_of(Case& of) {
  depth_step(of.step(), of.generated(), of.out_at.data(), gemm, serial_executor());
  double loss = 0.0;
  for (std::size_t way = 0; way < of.out.size(); ++way) {
    for (std::int64_t i = 0; i < of.out[way].count(); ++i) {
      loss += of.out[way].at(i) * of.grad_out[way].at(i);
    }
  }
  return loss;
}

void expect_slopes(Case& of, Numbers& values, const Numbers& gradient, const char* name) {
  for (std::int64_t i = 0; i < values.count(); ++i) {
    constexpr double kStep = 1e-5;
    const double value = values.at(i);
    values.set(i, value + kStep);
    const double above = loss_of(of);
    values.set(i, value - kStep);
    const double below = loss_of(of);
    values.set(i, value);
    const double slope = (above - below) / (2.0 * kStep);
    EXPECT_NEAR(gradient.at(i), slope, 1e-7 * (1.0 + std::fabs(slope))) << name << " " << i;
  }
}

TEST(DepthAggregateReferenceTest, GradientsAreSlopes) {
  for (const GeluForm gelu : {GeluForm::kExact, GeluForm::kTanh}) {
    Case of(DType::kFloat64, {2, 3, 3, 2, 4});
    of.gelu = gelu;
    of.run_step(serial_executor());
    const Case gradients = of;
    for (std::size_t source = 0; source < 3; ++source) {
      expect_slopes(of, of.sources[source], gradients.grad_sources[source], "source");
    }
    expect_slopes(of, of.w1, gradients.grad_w1, "w1");
    expect_slopes(of, of.w2, gradients.grad_w2, "w2");
    expect_slopes(of, of.bias, gradients.grad_bias, "bias");
  }
}

// The references themselves read every dtype.
TEST(DepthAggregateReferenceTest, EveryDTypeIsWithinTheBound) {
  for (const DType dtype : kDTypes) {
    Case of(dtype, {5, 19, 4, 3, 10});
    connection_weights_reference(of.generator(), of.generated());
    const ExactWeights exact(of);
    expect_close(of.z, exact.z, 19.0, of.statistics, of.statistics, "z");
    expect_close(of.weights, exact.weights, 10.0, of.statistics, of.statistics, "weights");
    depth_aggregate_reference(of.sum(), of.out_at.data());
    depth_aggregate_backward_reference(of.sum(), of.sum_gradients());
    for (std::size_t way = 0; way < 3; ++way) {
      expect_close(of.out[way], exact_stream(of, static_cast<std::int64_t>(way)), 4.0,
                   of.statistics, dtype, "out");
    }
    for (std::size_t source = 0; source < 4; ++source) {
      expect_close(of.grad_sources[source],
                   exact_grad_source(of, nullptr, static_cast<std::int64_t>(source)), 3.0,
                   of.statistics, dtype, "grad_source");
    }
    expect_close(of.grad_weights, exact_grad_weights(of), 19.0, of.statistics, of.statistics,
                 "grad_weights");
    ConnectionWeightsGradients gradients = of.generator_gradients();
    gradients.grad_x = of.grad_source_at.back();
    connection_weights_backward_reference(of.generator(), gradients);
    const ExactGradients of_generator(of);
    expect_close(of.grad_sources.back(), of_generator.x, 40.0, of.statistics, dtype, "grad_x");
    expect_close(of.grad_w1, of_generator.w1, 40.0, of.statistics, dtype, "grad_w1");
    expect_close(of.grad_w2, of_generator.w2, 40.0, of.statistics, dtype, "grad_w2");
    expect_close(of.grad_bias, of_generator.bias, 40.0, of.statistics, dtype, "grad_bias");
  }
}

TEST(DepthAggregateArgumentsTest, WrongShapesAreRefused) {
  Case of(DType::kFloat32, {2, 4, 3, 2, 5});
  for (std::int64_t DepthAggregate::* member :
       {&DepthAggregate::width, &DepthAggregate::num_sources, &DepthAggregate::num_ways}) {
    DepthAggregate sum = of.sum();
    sum.*member = 0;
    EXPECT_THROW(depth_aggregate(sum, of.out_at.data(), serial_executor()), ShapeError);
    EXPECT_THROW(depth_aggregate_backward(sum, of.sum_gradients(), serial_executor()), ShapeError);
  }
  ConnectionWeights generator = of.generator();
  generator.num_weights = 0;
  EXPECT_THROW(connection_weights(generator, of.generated(), gemm, serial_executor()), ShapeError);
  generator = of.generator();
  generator.num_tokens = -1;
  EXPECT_THROW(
      connection_weights_backward(generator, of.generator_gradients(), gemm, serial_executor()),
      ShapeError);
  DepthStep step = of.step();
  step.generator.num_weights = 5;
  EXPECT_THROW(depth_step(step, of.generated(), of.out_at.data(), gemm, serial_executor()),
               ShapeError);
}

TEST(DepthAggregateArgumentsTest, WrongValuesAreRefused) {
  Case of(DType::kFloat32, {2, 4, 3, 2, 5});
  EXPECT_THROW(depth_aggregate_backward(of.sum(), of.sum_gradients(4), serial_executor()),
               ValueError);
  EXPECT_THROW(depth_step_backward(of.step(), of.step_gradients(-1), gemm, serial_executor()),
               ValueError);
  ConnectionWeights generator = of.generator();
  for (const double eps : {0.0, -1.0, kNaN}) {
    generator.eps = eps;
    EXPECT_THROW(connection_weights(generator, of.generated(), gemm, serial_executor()),
                 ValueError);
  }
  DepthAggregate sum = of.sum();
  sum.weights_dtype = DType::kFloat64;
  EXPECT_THROW(depth_aggregate(sum, of.out_at.data(), serial_executor()), ValueError);
  DepthStep step = of.step();
  step.generator.x = of.source_at[0];
  EXPECT_THROW(depth_step(step, of.generated(), of.out_at.data(), gemm, serial_executor()),
               ValueError);
  step = of.step();
  step.base = of.source_at[0];
  EXPECT_THROW(depth_step(step, of.generated(), of.out_at.data(), gemm, serial_executor()),
               ValueError);
  step = of.step();
  step.aggregate.weights = of.grad_weights.data();
  EXPECT_THROW(depth_step(step, of.generated(), of.out_at.data(), gemm, serial_executor()),
               ValueError);
}

TEST(DepthAggregateTileTest, BlocksHoldEveryTokenOnceInOrder) {
  for (const std::int64_t count : {0, 1, 17, 513, 9000}) {
    for (const std::int64_t width : {1, 64, 1024, 40000}) {
      for (const std::int64_t size :
           {tokens_of_task(width), tokens_of_generator(width), tokens_of_pass(width)}) {
        ASSERT_GE(size, 1);
        std::int64_t next = 0;
        for (std::int64_t i = 0; i < num_blocks(count, size); ++i) {
          EXPECT_EQ(block_at(count, size, i).begin, next);
          next = block_at(count, size, i).end;
        }
        EXPECT_EQ(next, count);
      }
    }
  }
}

}  // namespace
}  // namespace paperlab::kernels
