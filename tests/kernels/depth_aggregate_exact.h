#pragma once
// What depth_aggregate and its generator should make, in float64, with bounds of its errors.

#include <gtest/gtest.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numbers>
#include <string>
#include <vector>

#include "tests/kernels/depth_aggregate_cases.h"

namespace paperlab::kernels::depth_test {

inline double eps_of(DType dtype) { return dtype == DType::kFloat64 ? 0x1p-52 : 0x1p-23; }

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
// their absolute values; what is stored in 16 bits has half an ulp more, float16 at least 2^-25.
inline void expect_close(const Numbers& actual, const Exact& exact, double terms, DType of_sums,
                         DType stored, const std::string& name) {
  ASSERT_EQ(static_cast<std::size_t>(actual.count()), exact.value.size()) << name;
  EXPECT_TRUE(actual.has_guards()) << name;
  const double half_ulp = stored == DType::kBFloat16  ? 0x1p-8
                          : stored == DType::kFloat16 ? 0x1p-11
                                                      : 0.0;
  const double least = stored == DType::kFloat16 ? 0x1p-25 : 0.0;
  for (std::int64_t i = 0; i < actual.count(); ++i) {
    const double bound = eps_of(of_sums) * (terms + 24.0) * exact.norm_at(i) * (1.0 + half_ulp) +
                         half_ulp * std::fabs(exact(i)) + least;
    const double error = std::fabs(actual.at(i) - exact(i));
    ASSERT_TRUE(error <= bound) << name << "[" << i << "]: got " << actual.at(i) << ", exact "
                                << exact(i) << ", bound " << bound;
  }
}

// The textbook, written for tensors that lie as a Case has them.
inline Exact exact_stream(const Case& of, std::int64_t way) {
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

inline Exact exact_grad_source(const Case& of, const Numbers* before, std::int64_t source) {
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

inline Exact exact_grad_weights(const Case& of) {
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

inline Gelu exact_gelu(double z, GeluForm form) {
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

}  // namespace paperlab::kernels::depth_test
