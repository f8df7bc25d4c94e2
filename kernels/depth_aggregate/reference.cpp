// The definitions, a token at a time in float64. With N = x r, H = gelu(Z), S the gradient of a
// sum:
//   dA[c, j] = sum_d S_c X_j,   dX_j = sum_c A[c, j] S_c,
//   da = sum_n dA,  dW2 = H^T dA,  dZ = dA W2^T gelu'(Z),  dW1 = N^T dZ,
//   dN = dZ W1^T,   dx = r (dN - N mean(dN N)).

#include <cmath>
#include <cstddef>
#include <numbers>
#include <vector>

#include "kernels/common/number.h"
#include "kernels/depth_aggregate/depth_aggregate.h"

namespace paperlab::kernels {
namespace {

using Numbers = std::vector<double>;

Numbers zeros(std::int64_t count) { return Numbers(static_cast<std::size_t>(count)); }

double& at(Numbers& numbers, std::int64_t i) { return numbers[static_cast<std::size_t>(i)]; }
double at(const Numbers& numbers, std::int64_t i) { return numbers[static_cast<std::size_t>(i)]; }

struct Gelu {
  double value;
  double slope;
};

Gelu gelu_of(double z, GeluForm form) {
  if (form == GeluForm::kExact) {
    const double normal = 0.5 * std::erfc(-z / std::numbers::sqrt2);
    const double density = std::exp(-0.5 * z * z) / std::sqrt(2.0 * std::numbers::pi);
    return {z * normal, normal + z * density};
  }
  const double scale = std::sqrt(2.0 / std::numbers::pi);
  const double t = std::tanh(scale * (z + 0.044715 * z * z * z));
  const double slope = scale * (1.0 + 3.0 * 0.044715 * z * z);
  return {0.5 * z * (1.0 + t), 0.5 * (1.0 + t) + 0.5 * z * (1.0 - t * t) * slope};
}

// Row `row` of a matrix [*, width].
Numbers load_row(const void* matrix, DType dtype, std::int64_t row, std::int64_t width) {
  Numbers numbers = zeros(width);
  for (std::int64_t i = 0; i < width; ++i) {
    at(numbers, i) = load_number(matrix, dtype, row * width + i);
  }
  return numbers;
}

void store_row(const Numbers& numbers, void* matrix, DType dtype, std::int64_t row) {
  const auto width = static_cast<std::int64_t>(numbers.size());
  for (std::int64_t i = 0; i < width; ++i) {
    store_number(matrix, dtype, row * width + i, at(numbers, i));
  }
}

// Where element (i, j) of a parameter [in, out] lies.
std::int64_t place(const ConnectionWeights& problem, std::int64_t i, std::int64_t j,
                   std::int64_t in, std::int64_t out) {
  return problem.is_transposed ? j * in + i : i * out + j;
}
std::int64_t place_w1(const ConnectionWeights& problem, std::int64_t d, std::int64_t k) {
  return place(problem, d, k, problem.width, problem.hidden_size);
}
std::int64_t place_w2(const ConnectionWeights& problem, std::int64_t k, std::int64_t i) {
  return place(problem, k, i, problem.hidden_size, problem.num_weights);
}

// Gradients of the generator's parameters, added up over tokens.
struct ParameterSums {
  Numbers w1;
  Numbers w2;
  Numbers bias;
};

// Adds a token's part; returns dZ.
Numbers add_parameters(const ConnectionWeights& problem,
                       const ConnectionWeightsGradients& gradients, std::int64_t n,
                       ParameterSums& sums) {
  const std::int64_t count = problem.num_weights;
  const DType statistics = statistics_dtype(problem.dtype);
  const Numbers x = load_row(problem.x, problem.dtype, n, problem.width);
  const Numbers grad = load_row(gradients.grad_weights, statistics, n, count);
  for (std::int64_t i = 0; i < count; ++i) {
    at(sums.bias, i) += at(grad, i);
  }
  Numbers grad_z = zeros(problem.hidden_size);
  for (std::int64_t k = 0; k < problem.hidden_size; ++k) {
    const double r = load_number(gradients.inverse_rms, statistics, n);
    const double z = load_number(gradients.z, statistics, n * problem.hidden_size + k);
    const auto [value, slope] = gelu_of(z, problem.gelu);
    for (std::int64_t i = 0; i < count; ++i) {
      const std::int64_t w2 = place_w2(problem, k, i);
      at(sums.w2, w2) += value * at(grad, i);
      at(grad_z, k) += at(grad, i) * load_number(problem.w2, problem.dtype, w2) * slope;
    }
    for (std::int64_t d = 0; d < problem.width; ++d) {
      at(sums.w1, place_w1(problem, d, k)) += at(x, d) * r * at(grad_z, k);
    }
  }
  return grad_z;
}

void add_grad_x(const ConnectionWeights& problem, const ConnectionWeightsGradients& gradients,
                std::int64_t n, const Numbers& grad_z) {
  const Numbers x = load_row(problem.x, problem.dtype, n, problem.width);
  const double r = problem.hidden_size == 0
                       ? 0.0
                       : load_number(gradients.inverse_rms, statistics_dtype(problem.dtype), n);
  Numbers grad_n = zeros(problem.width);
  double mean = 0.0;
  for (std::int64_t d = 0; d < problem.width; ++d) {
    for (std::int64_t k = 0; k < problem.hidden_size; ++k) {
      at(grad_n, d) +=
          at(grad_z, k) * load_number(problem.w1, problem.dtype, place_w1(problem, d, k));
    }
    mean += problem.hidden_size == 0
                ? 0.0
                : at(grad_n, d) * at(x, d) * r / static_cast<double>(problem.width);
  }
  for (std::int64_t d = 0; d < problem.width && problem.hidden_size > 0; ++d) {
    at(grad_n, d) = r * (at(grad_n, d) - at(x, d) * r * mean);
  }
  for (std::int64_t d = 0; d < problem.width && gradients.adds_to_grad_x; ++d) {
    at(grad_n, d) += load_number(gradients.grad_x, problem.dtype, n * problem.width + d);
  }
  store_row(grad_n, gradients.grad_x, problem.dtype, n);
}

double weight_of(const DepthAggregate& problem, std::int64_t n, std::int64_t c, std::int64_t j) {
  return load_number(problem.weights, problem.weights_dtype,
                     n * problem.token_stride + c * problem.way_stride + j);
}

}  // namespace

void connection_weights_reference(const ConnectionWeights& problem,
                                  const ConnectionWeightsResult& result) {
  const DType statistics = statistics_dtype(problem.dtype);
  const auto width = static_cast<double>(problem.width);
  for (std::int64_t n = 0; n < problem.num_tokens; ++n) {
    const Numbers x = load_row(problem.x, problem.dtype, n, problem.width);
    double squares = 0.0;
    for (const double value : x) {
      squares += value * value;
    }
    const double r = 1.0 / std::sqrt(squares / width + problem.eps);
    Numbers weights = load_row(problem.bias, problem.dtype, 0, problem.num_weights);
    for (std::int64_t k = 0; k < problem.hidden_size; ++k) {
      double z = 0.0;
      for (std::int64_t d = 0; d < problem.width; ++d) {
        z += at(x, d) * r * load_number(problem.w1, problem.dtype, place_w1(problem, d, k));
      }
      if (result.z != nullptr) {
        store_number(result.z, statistics, n * problem.hidden_size + k, z);
      }
      const double h = gelu_of(z, problem.gelu).value;
      for (std::int64_t i = 0; i < problem.num_weights; ++i) {
        at(weights, i) += h * load_number(problem.w2, problem.dtype, place_w2(problem, k, i));
      }
    }
    store_row(weights, result.weights, statistics, n);
    if (result.inverse_rms != nullptr && problem.hidden_size > 0) {
      store_number(result.inverse_rms, statistics, n, r);
    }
  }
}

void connection_weights_backward_reference(const ConnectionWeights& problem,
                                           const ConnectionWeightsGradients& gradients) {
  ParameterSums sums = {zeros(problem.width * problem.hidden_size),
                        zeros(problem.hidden_size * problem.num_weights),
                        zeros(problem.num_weights)};
  for (std::int64_t n = 0; n < problem.num_tokens; ++n) {
    const Numbers grad_z = add_parameters(problem, gradients, n, sums);
    if (gradients.grad_x != nullptr) {
      add_grad_x(problem, gradients, n, grad_z);
    }
  }
  if (gradients.grad_w1 != nullptr) {
    store_row(sums.w1, gradients.grad_w1, problem.dtype, 0);
  }
  if (gradients.grad_w2 != nullptr) {
    store_row(sums.w2, gradients.grad_w2, problem.dtype, 0);
  }
  if (gradients.grad_bias != nullptr) {
    store_row(sums.bias, gradients.grad_bias, problem.dtype, 0);
  }
}

void depth_aggregate_reference(const DepthAggregate& problem, void* const* out) {
  for (std::int64_t n = 0; n < problem.num_tokens; ++n) {
    for (std::int64_t c = 0; c < problem.num_ways; ++c) {
      for (std::int64_t d = n * problem.width; d < (n + 1) * problem.width; ++d) {
        double sum = 0.0;
        for (std::int64_t j = 0; j < problem.num_sources; ++j) {
          sum += weight_of(problem, n, c, j) * load_number(problem.sources[j], problem.dtype, d);
        }
        store_number(out[c], problem.dtype, d, sum);
      }
    }
  }
}

namespace {

// Adds a token's part of the weights' gradients to sums [C, J], source by source.
void add_source(const DepthAggregate& problem, const DepthAggregateGradients& gradients,
                std::int64_t n, std::int64_t j, Numbers& sums) {
  void* to = gradients.grad_sources == nullptr ? nullptr : gradients.grad_sources[j];
  for (std::int64_t d = n * problem.width; d < (n + 1) * problem.width; ++d) {
    const double x =
        gradients.grad_weights == nullptr ? 0.0 : load_number(problem.sources[j], problem.dtype, d);
    double grad =
        to != nullptr && j < gradients.num_added ? load_number(to, problem.dtype, d) : 0.0;
    for (std::int64_t c = 0; c < problem.num_ways; ++c) {
      if (gradients.grad_out[c] != nullptr) {
        const double of_sum = load_number(gradients.grad_out[c], problem.dtype, d);
        grad += weight_of(problem, n, c, j) * of_sum;
        at(sums, c * problem.num_sources + j) += of_sum * x;
      }
    }
    if (to != nullptr) {
      store_number(to, problem.dtype, d, grad);
    }
  }
}

}  // namespace

void depth_aggregate_backward_reference(const DepthAggregate& problem,
                                        const DepthAggregateGradients& gradients) {
  const std::int64_t count = problem.num_ways * problem.num_sources;
  const bool is_static = problem.token_stride == 0;
  const auto store = [&](const Numbers& sums, std::int64_t n) {
    for (std::int64_t i = 0; i < count && gradients.grad_weights != nullptr; ++i) {
      store_number(gradients.grad_weights, statistics_dtype(problem.dtype),
                   n * problem.token_stride + i / problem.num_sources * problem.way_stride +
                       i % problem.num_sources,
                   at(sums, i));
    }
  };
  Numbers sums = zeros(count);
  for (std::int64_t n = 0; n < problem.num_tokens; ++n) {
    sums = is_static ? sums : zeros(count);
    for (std::int64_t j = 0; j < problem.num_sources; ++j) {
      add_source(problem, gradients, n, j, sums);
    }
    if (!is_static) {
      store(sums, n);
    }
  }
  if (is_static) {
    store(sums, 0);
  }
}

}  // namespace paperlab::kernels
