#pragma once
// Cases of swiglu for the tests of all backends: inputs, results that start as NaN, and the
// textbook with the bounds of its comparison.

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "kernels/common/number.h"
#include "kernels/swiglu/swiglu.h"
#include "paperlab/core/rng.h"
#include "tests/support/row_tensor.h"

namespace paperlab::kernels::swiglu_cases {

// [N, F] in memory whose rows are `stride` apart; unset bytes are 0xFF, which is NaN in every
// dtype.
struct Matrix {
  Matrix(DType type, std::int64_t rows, std::int64_t columns, std::int64_t apart,
         std::int64_t first_element)
      : dtype(type),
        num_rows(rows),
        width(columns),
        stride(apart),
        first(first_element),
        bytes(static_cast<std::size_t>((first + rows * apart) * 8), std::byte{0xFF}) {}

  Matrix& randomize(std::uint64_t stream, double scale) {
    for (std::int64_t row = 0; row < num_rows; ++row) {
      for (std::int64_t f = 0; f < width; ++f) {
        const auto i = static_cast<std::uint64_t>(row * width + f);
        set(row, f, scale * philox_normal(3, stream, i));
      }
    }
    return *this;
  }
  double get(std::int64_t row, std::int64_t f) const {
    return load_number(bytes.data(), dtype, first + row * stride + f);
  }
  void set(std::int64_t row, std::int64_t f, double x) {
    store_number(bytes.data(), dtype, first + row * stride + f, x);
  }
  Rows view() const { return {bytes.data() + first * test::bytes_of(dtype), stride}; }
  MutableRows view() { return {bytes.data() + first * test::bytes_of(dtype), stride}; }
  bool has_untouched_gaps() const {
    for (std::int64_t row = 0; row < num_rows; ++row) {
      for (std::int64_t f = width; f < stride; ++f) {
        if (!std::isnan(get(row, f))) {
          return false;
        }
      }
    }
    return true;
  }

  DType dtype;
  std::int64_t num_rows;
  std::int64_t width;
  std::int64_t stride;
  std::int64_t first;
  std::vector<std::byte> bytes;
};

struct Case {
  Case(DType dtype, std::int64_t rows, std::int64_t width, std::int64_t stride, double scale = 2.0,
       std::int64_t first = 0)
      : gate(dtype, rows, width, stride, first),
        up(gate),
        grad_y(gate),
        y(gate),
        grad_gate(gate),
        grad_up(gate) {
    gate.randomize(1, scale);
    up.randomize(2, 1.0);
    grad_y.randomize(3, 1.0);
  }
  Swiglu problem() const {
    const Matrix& const_gate = gate;
    const Matrix& const_up = up;
    return {gate.dtype, gate.num_rows, gate.width, const_gate.view(), const_up.view()};
  }
  void run(const Executor& executor) {
    swiglu(problem(), y.view(), executor);
    const Matrix& grad = grad_y;
    swiglu_backward(problem(), grad.view(), grad_gate.view(), grad_up.view(), executor);
  }

  bool has_same_results(const Case& other) const {
    return y.bytes == other.y.bytes && grad_gate.bytes == other.grad_gate.bytes &&
           grad_up.bytes == other.grad_up.bytes;
  }

  Matrix gate;
  Matrix up;
  Matrix grad_y;
  Matrix y;
  Matrix grad_gate;
  Matrix grad_up;
};

// Some sixteen roundings, of exp, the quotient and the products, relative to the sum of the
// absolute values, and the rounding of exp's argument, which its exponential multiplies by |gate|;
// a result of 16 bits has half an ulp more, and numbers below the smallest normal are lost.
inline bool is_close(DType dtype, double gate, double got, double exact, double norm) {
  return std::fabs(got - exact) <= (16.0 + std::fabs(gate)) * test::epsilon(dtype) * norm +
                                       test::half_ulp(dtype) * std::fabs(exact) +
                                       test::half_step(dtype) + 0x1p-120;
}

inline void expect_right(const Case& of) {
  SCOPED_TRACE(testing::Message() << "dtype " << static_cast<int>(of.gate.dtype) << ", ["
                                  << of.gate.num_rows << ", " << of.gate.width << "], stride "
                                  << of.gate.stride << ", first " << of.gate.first);
  const DType dtype = of.gate.dtype;
  for (std::int64_t row = 0; row < of.gate.num_rows; ++row) {
    for (std::int64_t f = 0; f < of.gate.width; ++f) {
      const double x = of.gate.get(row, f);
      const double up = of.up.get(row, f);
      const double grad = of.grad_y.get(row, f);
      const double s = 1.0 / (1.0 + std::exp(-x));
      const double other = 1.0 / (1.0 + std::exp(x));
      ASSERT_TRUE(is_close(dtype, x, of.y.get(row, f), x * s * up, std::fabs(x * s * up)));
      ASSERT_TRUE(
          is_close(dtype, x, of.grad_up.get(row, f), grad * x * s, std::fabs(grad * x * s)));
      ASSERT_TRUE(is_close(dtype, x, of.grad_gate.get(row, f), grad * up * s * (1.0 + x * other),
                           std::fabs(grad * up * s) * (1.0 + std::fabs(x * other))))
          << of.grad_gate.get(row, f) << " at gate " << x;
    }
  }
  EXPECT_TRUE(of.y.has_untouched_gaps() && of.grad_gate.has_untouched_gaps() &&
              of.grad_up.has_untouched_gaps());
}

// --- the GPU's kernel, on a GPU and block by block on the CPU ------------------------------------

inline constexpr DType kCudaDTypes[] = {DType::kFloat32, DType::kBFloat16, DType::kFloat16,
                                        DType::kFloat64};

// Of both passes after run(case): rows side by side, apart by packs and apart by other numbers,
// aligned and not.
template <class Run>
void expect_right_of_all(Run run) {
  for (const DType dtype : kCudaDTypes) {
    for (const std::int64_t rows : {0, 1, 5}) {
      for (const std::int64_t width : {1, 3, 16, 65, 64, 5000}) {
        for (const std::int64_t gap : {0, 7, 64}) {
          for (const std::int64_t first : {0, 1}) {
            Case of(dtype, rows, width, width + gap, 2.0, first);
            run(of);
            expect_right(of);
          }
        }
      }
    }
  }
}

// Gates that overflow or cancel in careless forms.
template <class Run>
void expect_right_of_large_gates(Run run) {
  for (const DType dtype : kCudaDTypes) {
    Case of(dtype, 4, 100, 100, 60.0);
    run(of);
    expect_right(of);
  }
}

}  // namespace paperlab::kernels::swiglu_cases
