#pragma once
// Cases of rms_norm for the tests of all backends: inputs, results that start as NaN, and the
// textbook with the bounds of its comparison.

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "kernels/rms_norm/rms_norm.h"
#include "tests/support/row_tensor.h"

namespace paperlab::kernels::rms_norm_cases {

using test::RowTensor;

// Inputs of both passes and room for their results.
struct Case {
  Case(DType type, std::int64_t rows, std::int64_t columns, bool adds, std::int64_t offset = 0)
      : dtype(type),
        num_rows(rows),
        width(columns),
        has_residual(adds),
        x(type, rows * columns, offset),
        residual(x),
        weight(type, columns, offset),
        grad_y(x),
        grad_sum(x),
        y(x),
        sum(x),
        inverse_rms(statistics_dtype(type), rows, offset),
        grad_x(x),
        grad_weight(type, columns, offset) {
    x.randomize(1);
    residual.randomize(2);
    weight.randomize(3);
    grad_y.randomize(4);
    grad_sum.randomize(5);
  }

  RmsNormForward forward() {
    return {dtype,
            num_rows,
            width,
            1e-5,
            x.data(),
            has_residual ? residual.data() : nullptr,
            weight.data(),
            y.data(),
            has_residual ? sum.data() : nullptr,
            inverse_rms.data()};
  }
  RmsNormBackward backward() {
    return {dtype,
            num_rows,
            width,
            grad_y.data(),
            has_residual ? grad_sum.data() : nullptr,
            has_residual ? sum.data() : x.data(),
            weight.data(),
            inverse_rms.data(),
            grad_x.data(),
            grad_weight.data()};
  }
  std::vector<RowTensor*> tensors() {
    return {&x, &residual, &weight,      &grad_y, &grad_sum,
            &y, &sum,      &inverse_rms, &grad_x, &grad_weight};
  }
  bool has_same_results(const Case& other) const {
    return y == other.y && sum == other.sum && inverse_rms == other.inverse_rms &&
           grad_x == other.grad_x && grad_weight == other.grad_weight;
  }

  DType dtype;
  std::int64_t num_rows;
  std::int64_t width;
  bool has_residual;
  RowTensor x;
  RowTensor residual;
  RowTensor weight;
  RowTensor grad_y;
  RowTensor grad_sum;
  RowTensor y;
  RowTensor sum;
  RowTensor inverse_rms;
  RowTensor grad_x;
  RowTensor grad_weight;
};

// Of a sum of `terms` numbers and some ten further roundings, relative to the sum of their absolute
// values; a result of 16 bits has half an ulp more.
inline double relative_bound(DType dtype, std::int64_t terms) {
  return test::epsilon(dtype) * static_cast<double>(terms + 16) + test::half_ulp(dtype);
}

inline void expect_close(const RowTensor& actual, const std::vector<double>& exact,
                         const std::vector<double>& norm, double bound, const char* name) {
  const std::vector<double> values = actual.values();
  ASSERT_EQ(values.size(), exact.size());
  EXPECT_TRUE(actual.has_untouched_ends()) << name;
  for (std::size_t i = 0; i < exact.size(); ++i) {
    const double allowed = bound * norm[i] + test::half_step(actual.dtype());
    ASSERT_TRUE(std::fabs(values[i] - exact[i]) <= allowed)
        << name << "[" << i << "]: got " << values[i] << ", exact " << exact[i] << ", bound "
        << allowed;
  }
}

// The textbook in float64, with the sums of absolute values behind each result. Starts from the
// rounded sum, and backward from the inverse root mean square of it.
struct Exact {
  explicit Exact(const Case& of) {
    const std::vector<double> s = (of.has_residual ? of.sum : of.x).values();
    const std::vector<double> weight = of.weight.values();
    const std::vector<double> grad_y = of.grad_y.values();
    const std::vector<double> grad_sum = of.grad_sum.values();
    const auto width = static_cast<std::size_t>(of.width);
    grad_weight.assign(width, 0.0);
    grad_weight_norm.assign(width, 0.0);
    for (std::size_t row = 0; row < static_cast<std::size_t>(of.num_rows); ++row) {
      double squares = 0.0;
      for (std::size_t d = 0; d < width; ++d) {
        squares += s[row * width + d] * s[row * width + d];
      }
      const double r = 1.0 / std::sqrt(squares / static_cast<double>(width) + 1e-5);
      double mean = 0.0;
      double mean_norm = 0.0;
      for (std::size_t d = 0; d < width; ++d) {
        const std::size_t at = row * width + d;
        const double term = grad_y[at] * weight[d] * s[at] * r / static_cast<double>(width);
        mean += term;
        mean_norm += std::fabs(term);
        grad_weight[d] += grad_y[at] * s[at] * r;
        grad_weight_norm[d] += std::fabs(grad_y[at] * s[at] * r);
      }
      for (std::size_t d = 0; d < width; ++d) {
        const std::size_t at = row * width + d;
        const double of_sum = of.has_residual ? grad_sum[at] : 0.0;
        y.push_back(s[at] * r * weight[d]);
        y_norm.push_back(std::fabs(y.back()));
        grad_x.push_back(r * (grad_y[at] * weight[d] - s[at] * r * mean) + of_sum);
        grad_x_norm.push_back(
            r * (std::fabs(grad_y[at] * weight[d]) + std::fabs(s[at] * r) * mean_norm) +
            std::fabs(of_sum));
      }
    }
  }

  std::vector<double> y;
  std::vector<double> y_norm;
  std::vector<double> grad_x;
  std::vector<double> grad_x_norm;
  std::vector<double> grad_weight;
  std::vector<double> grad_weight_norm;
};

// Of both passes.
inline void expect_right(const Case& of) {
  SCOPED_TRACE(testing::Message() << "dtype " << static_cast<int>(of.dtype) << ", [" << of.num_rows
                                  << ", " << of.width << "], residual " << of.has_residual);
  const Exact exact(of);
  const double bound = relative_bound(of.dtype, of.width);
  expect_close(of.y, exact.y, exact.y_norm, bound, "y");
  expect_close(of.grad_x, exact.grad_x, exact.grad_x_norm, bound, "grad_x");
  expect_close(of.grad_weight, exact.grad_weight, exact.grad_weight_norm,
               relative_bound(of.dtype, of.width + of.num_rows), "grad_weight");
  EXPECT_TRUE(of.sum.has_untouched_ends() && of.inverse_rms.has_untouched_ends());
  for (std::int64_t i = 0; of.has_residual && i < of.x.count(); ++i) {
    RowTensor expected(of.dtype, 1);
    expected.set(0, of.x.at(i) + of.residual.at(i));
    ASSERT_EQ(of.sum.at(i), expected.at(0)) << "the sum is the rounded one";
  }
}

}  // namespace paperlab::kernels::rms_norm_cases
