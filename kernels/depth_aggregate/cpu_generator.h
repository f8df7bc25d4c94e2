#pragma once
// The weights of a run of tokens and what their gradients are made of.
#include "kernels/depth_aggregate/cpu_grid.h"

namespace paperlab::kernels::PAPERLAB_ISA {
namespace {

// Terms that are added up before they go to memory: 64 columns of them, 32 KiB, stay in the
// first-level cache, and chains of additions stay short.
constexpr std::int64_t kTerms = 128;

// c [rows, columns] = a [rows, k] b [k, padded columns] + bias.
template <class T>
struct RowProduct {
  const T* a;
  std::int64_t a_stride;
  std::int64_t k;
  const float* b;
  std::int64_t columns;
  const float* bias;  // padded; absent: zeros
  float* c;
  std::int64_t c_stride;
};

template <class T, int kRows, int kVecs>
void product_tile(const RowProduct<T>& of, std::int64_t row, std::int64_t column,
                  TokenRange terms) {
  VecF sums[kRows][kVecs];
  const std::int64_t b_stride = padded(of.columns);
  const auto count_of = [&](int v) {
    return least(of.columns - column - v * kFloatLanes, kFloatLanes);
  };
  repeat<kVecs>([&](int v) {
    const VecF bias = of.bias == nullptr ? zero() : load(of.bias + column + v * kFloatLanes);
    repeat<kRows>([&](int r) {
      const float* c = of.c + (row + r) * of.c_stride + column + v * kFloatLanes;
      sums[r][v] = terms.begin == 0 || count_of(v) <= 0 ? bias : load_row(c, count_of(v));
    });
  });
  const T* a = of.a + row * of.a_stride;
  for (std::int64_t k = terms.begin; k < terms.end; ++k) {
    VecF b[kVecs];
    repeat<kVecs>([&](int v) { b[v] = load(of.b + k * b_stride + column + v * kFloatLanes); });
    repeat<kRows>([&](int r) {
      const VecF x = set1(number(a + r * of.a_stride + k));
      repeat<kVecs>([&](int v) { sums[r][v] = fma(x, b[v], sums[r][v]); });
    });
  }
  repeat<kVecs>([&](int v) {
    repeat<kRows>([&](int r) {
      if (count_of(v) > 0) {
        store_row(of.c + (row + r) * of.c_stride + column + v * kFloatLanes, count_of(v),
                  sums[r][v]);
      }
    });
  });
}

template <class T, int kVecs>
void product_columns(const RowProduct<T>& of, std::int64_t rows, std::int64_t column) {
  // Sums fill the registers.
  constexpr int kRows = kVecs == kMostVecs ? 6 : kVecs == 3 ? 8 : 12;
  for (std::int64_t k = 0; k == 0 || k < of.k; k += kTerms) {
    const TokenRange terms = {k, least(k + kTerms, of.k)};
    std::int64_t row = 0;
    for (; row + kRows <= rows; row += kRows) {
      product_tile<T, kRows, kVecs>(of, row, column, terms);
    }
    for (; row + 2 <= rows; row += 2) {
      product_tile<T, 2, kVecs>(of, row, column, terms);
    }
    if (row < rows) {
      product_tile<T, 1, kVecs>(of, row, column, terms);
    }
  }
}

template <class T>
void product(const RowProduct<T>& of, std::int64_t rows) {
  const std::int64_t vecs = num_blocks(of.columns, kFloatLanes);
  const std::int64_t tiles = num_blocks(vecs, kMostVecs);
  for (std::int64_t tile = 0; tile < tiles; ++tile) {
    const std::int64_t first = tile * vecs / tiles;
    const std::int64_t column = first * kFloatLanes;
    switch ((tile + 1) * vecs / tiles - first) {
      case 1:
        product_columns<T, 1>(of, rows, column);
        break;
      case 2:
        product_columns<T, 2>(of, rows, column);
        break;
      case 3:
        product_columns < T, kMostVecs<3 ? 1 : 3>(of, rows, column);
        break;
      default:
        product_columns < T, kMostVecs<4 ? 1 : 4>(of, rows, column);
    }
  }
}

struct Gelu {
  VecF value;
  VecF slope;
};

// z Phi(z) and Phi(z) + z phi(z), with Phi(-|z|) = exp(-z^2 / 2) t p(t) / 2, t = 1 / (1 + 0.35
// |z| / sqrt 2); t p(t) is exp(x^2) erfc(x) to 4e-7 (least squares on relative errors, degree 9).
inline Gelu gelu_exact(VecF z) {
  const VecF size = z < zero() ? -z : z;
  const VecF t = 1.0F / fma(size, set1(0.35F * 0.70710678F), set1(1.0F));
  VecF p = set1(0.03841949999332428F);
  p = fma(p, t, set1(-0.15893132984638214F));
  p = fma(p, t, set1(0.18120776116847992F));
  p = fma(p, t, set1(-0.026969682425260544F));
  p = fma(p, t, set1(0.08602650463581085F));
  p = fma(p, t, set1(0.14680969715118408F));
  p = fma(p, t, set1(0.15082722902297974F));
  p = fma(p, t, set1(0.18800245225429535F));
  p = fma(p, t, set1(0.19712311029434204F));
  p = fma(p, t, set1(0.19748474657535553F));
  const VecF decay = exp(z * z * -0.5F);
  const VecF tail = decay * t * p * 0.5F;
  const VecF normal = z < zero() ? tail : 1.0F - tail;
  return {z * normal, fma(z * decay, set1(0.39894228F), normal)};
}

// z s(2 u), u = sqrt(2 / pi) (z + 0.044715 z^3), s the logistic function.
inline Gelu gelu_tanh(VecF z) {
  const VecF u = z * fma(z * z, set1(2.0F * 0.79788456F * 0.044715F), set1(2.0F * 0.79788456F));
  const VecF e = exp(u < zero() ? u : -u);
  const VecF s = (u < zero() ? e : set1(1.0F)) / (e + 1.0F);
  const VecF rest = (u < zero() ? set1(1.0F) : e) / (e + 1.0F);  // 1 - s would cancel
  const VecF slope = fma(z * z, set1(6.0F * 0.79788456F * 0.044715F), set1(2.0F * 0.79788456F));
  return {z * s, fma(z * s, rest * slope, s)};
}

inline Gelu gelu(VecF z, GeluForm form) {
  return form == GeluForm::kExact ? gelu_exact(z) : gelu_tanh(z);
}

template <class T>
float inverse_rms(const T* x, std::int64_t width, double eps) {
  VecF squares[2] = {};
  int at = 0;
  for_each_vector(width, [&](std::int64_t d, std::int64_t count) {
    const VecF v = load_row(x + d, count);
    squares[at] = fma(v, v, squares[at]);
    at ^= 1;
  });
  const float mean = sum_of_lanes(squares[0] + squares[1]) / static_cast<float>(width);
  return 1.0F / __builtin_sqrtf(mean + static_cast<float>(eps));
}

template <class T>
void generate_tokens(const ConnectionWeights& problem, const GeneratorPanels& panels,
                     const ConnectionWeightsResult& result, TokenRange tokens, float* h) {
  const std::int64_t width = problem.width;
  const std::int64_t hidden = problem.hidden_size;
  const std::int64_t stride = padded(hidden);
  const auto* x = static_cast<const T*>(problem.x) + tokens.begin * width;
  if (hidden > 0) {
    product<T>({x, width, width, panels.w1, hidden, nullptr, h, stride}, tokens.size());
  }
  for (std::int64_t n = 0; n < tokens.size() && hidden > 0; ++n) {
    const float r = inverse_rms(x + n * width, width, problem.eps);
    if (result.inverse_rms != nullptr) {
      static_cast<float*>(result.inverse_rms)[tokens.begin + n] = r;
    }
    float* z =
        result.z == nullptr ? nullptr : static_cast<float*>(result.z) + (tokens.begin + n) * hidden;
    for_each_vector(hidden, [&](std::int64_t k, std::int64_t count) {
      const VecF value = load_row(h + n * stride + k, count) * r;
      if (z != nullptr) {
        store_row(z + k, count, value);
      }
      store_row(h + n * stride + k, count, gelu(value, problem.gelu).value);
    });
  }
  product<float>({h, stride, hidden, panels.w2, problem.num_weights, panels.bias,
                  static_cast<float*>(result.weights) + tokens.begin * problem.num_weights,
                  problem.num_weights},
                 tokens.size());
}

inline void generate(const ConnectionWeights& problem, const GeneratorPanels& panels,
                     const ConnectionWeightsResult& result, TokenRange tokens, float* scratch) {
  if (problem.dtype == DType::kFloat32) {
    generate_tokens<float>(problem, panels, result, tokens, scratch);
  } else {
    generate_tokens<std::uint16_t>(problem, panels, result, tokens, scratch);
  }
}

// h, and the gradient of z times r from that of h. With Z the token's and dZ its gradient,
// mean(dN N) = dZ Z / D, because N = x r and Z = N w1; of_x [tokens] is set to that times r^2.
inline void grad_z(const ConnectionWeights& problem, const ConnectionWeightsGradients& gradients,
                   const GeneratorRows& rows, TokenRange tokens, float* of_x) {
  const std::int64_t hidden = problem.hidden_size;
  for (std::int64_t n = tokens.begin; n < tokens.end; ++n) {
    const auto* z = static_cast<const float*>(gradients.z) + n * hidden;
    const float r = static_cast<const float*>(gradients.inverse_rms)[n];
    float* h = rows.h + (n - rows.begin) * hidden;
    float* grad = rows.grad_z + (n - rows.begin) * hidden;
    VecF sum = zero();
    for_each_vector(hidden, [&](std::int64_t k, std::int64_t count) {
      const VecF value = load_row(z + k, count);
      const auto [activation, slope] = gelu(value, problem.gelu);
      const VecF of_z = load_row(grad + k, count) * slope * r;
      store_row(h + k, count, activation);
      store_row(grad + k, count, of_z);
      sum = fma(of_z, value, sum);
    });
    of_x[n - tokens.begin] = sum_of_lanes(sum) * r / static_cast<float>(problem.width);
  }
}

// product [tokens, padded D]: grad_z w1^T.
template <class T>
void grad_x(const ConnectionWeights& problem, const ConnectionWeightsGradients& gradients,
            const float* product, const float* of_x, TokenRange tokens) {
  const std::int64_t width = problem.width;
  for (std::int64_t n = tokens.begin; n < tokens.end; ++n) {
    const auto* x = static_cast<const T*>(problem.x) + n * width;
    const float* of_z = product + (n - tokens.begin) * padded(width);
    auto* to = static_cast<T*>(gradients.grad_x) + n * width;
    const VecF minus_of_x = set1(-of_x[n - tokens.begin]);
    const bool is_added = gradients.adds_to_grad_x;
    for_each_vector(width, [&](std::int64_t d, std::int64_t count) {
      const VecF grad = fma(minus_of_x, load_row(x + d, count), load_row(of_z + d, count));
      store_row(to + d, count, is_added ? load_row(to + d, count) + grad : grad);
    });
  }
}

inline void generate_backward(const ConnectionWeights& problem,
                              const ConnectionWeightsGradients& gradients,
                              const GradientPanels& panels, const GeneratorRows& rows,
                              TokenRange tokens, float* scratch) {
  const std::int64_t count = problem.num_weights;
  const std::int64_t hidden = problem.hidden_size;
  const std::int64_t stride = padded(problem.width);
  float* of_x = scratch;
  float* of_z = scratch + padded(tokens.size());
  float* grad = rows.grad_z + (tokens.begin - rows.begin) * hidden;
  const auto* grad_weights =
      static_cast<const float*>(gradients.grad_weights) + tokens.begin * count;
  product<float>({grad_weights, count, count, panels.w2, hidden, nullptr, grad, hidden},
                 tokens.size());
  grad_z(problem, gradients, rows, tokens, of_x);
  if (gradients.grad_x == nullptr) {
    return;
  }
  product<float>({grad, hidden, hidden, panels.w1, problem.width, nullptr, of_z, stride},
                 tokens.size());
  if (problem.dtype == DType::kFloat32) {
    grad_x<float>(problem, gradients, of_z, of_x, tokens);
  } else {
    grad_x<std::uint16_t>(problem, gradients, of_z, of_x, tokens);
  }
}

}  // namespace
}  // namespace paperlab::kernels::PAPERLAB_ISA
