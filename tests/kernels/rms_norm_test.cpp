#include "kernels/rms_norm/rms_norm.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "kernels/common/number.h"
#include "kernels/rms_norm/tile.h"
#include "paperlab/core/error.h"
#include "paperlab/core/parallel.h"
#include "paperlab/core/rng.h"
#include "tests/support/isa.h"

namespace paperlab::kernels {
namespace {

using Bytes = std::vector<std::byte>;

std::int64_t bytes_of(DType dtype) {
  return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2;
}

Bytes nans(DType dtype, std::int64_t count) {  // 0xFF... is NaN in every dtype
  return Bytes(static_cast<std::size_t>(count * bytes_of(dtype)), std::byte{0xFF});
}

Bytes random(DType dtype, std::int64_t count, std::uint64_t stream) {
  Bytes bytes = nans(dtype, count);
  for (std::int64_t i = 0; i < count; ++i) {
    store_number(bytes.data(), dtype, i, philox_normal(7, stream, static_cast<std::uint64_t>(i)));
  }
  return bytes;
}

std::vector<double> values(const Bytes& bytes, DType dtype) {
  std::vector<double> out(bytes.size() / static_cast<std::size_t>(bytes_of(dtype)));
  for (std::size_t i = 0; i < out.size(); ++i) {
    out[i] = load_number(bytes.data(), dtype, static_cast<std::int64_t>(i));
  }
  return out;
}

// Inputs of both passes and room for their results.
struct Case {
  Case(DType type, std::int64_t rows, std::int64_t columns, bool adds)
      : dtype(type), num_rows(rows), width(columns), has_residual(adds) {
    const std::int64_t count = rows * columns;
    x = random(dtype, count, 1);
    residual = random(dtype, count, 2);
    weight = random(dtype, columns, 3);
    grad_y = random(dtype, count, 4);
    grad_sum = random(dtype, count, 5);
    y = sum = grad_x = nans(dtype, count);
    grad_weight = nans(dtype, columns);
    inverse_rms = nans(statistics_dtype(dtype), rows);
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

  DType dtype;
  std::int64_t num_rows;
  std::int64_t width;
  bool has_residual;
  Bytes x;
  Bytes residual;
  Bytes weight;
  Bytes grad_y;
  Bytes grad_sum;
  Bytes y;
  Bytes sum;
  Bytes inverse_rms;
  Bytes grad_x;
  Bytes grad_weight;
};

// Of a sum of `terms` numbers and some ten further roundings, relative to the sum of their absolute
// values; a bfloat16 result has half an ulp more.
double relative_bound(DType dtype, std::int64_t terms) {
  const double eps = dtype == DType::kFloat64 ? 0x1p-52 : 0x1p-23;
  const double rounding = dtype == DType::kBFloat16 ? 0x1p-8 : 0.0;
  return eps * static_cast<double>(terms + 16) + rounding;
}

void expect_close(const std::vector<double>& actual, const std::vector<double>& exact,
                  const std::vector<double>& norm, double bound, const char* name) {
  ASSERT_EQ(actual.size(), exact.size());
  for (std::size_t i = 0; i < exact.size(); ++i) {
    const double error = std::fabs(actual[i] - exact[i]);
    EXPECT_TRUE(error <= bound * norm[i])
        << name << "[" << i << "]: got " << actual[i] << ", exact " << exact[i] << ", bound "
        << bound * norm[i];
  }
}

// The textbook in float64, with the sums of absolute values behind each result.
struct Exact {
  explicit Exact(Case& of) {
    const std::vector<double> s = values(of.has_residual ? of.sum : of.x, of.dtype);
    const std::vector<double> weight = values(of.weight, of.dtype);
    const std::vector<double> grad_y = values(of.grad_y, of.dtype);
    const std::vector<double> grad_sum = values(of.grad_sum, of.dtype);
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

class RmsNormTest : public testing::TestWithParam<CpuIsa> {
 protected:
  void SetUp() override {
    if (!test::is_available(GetParam())) {
      GTEST_SKIP() << test::missing(GetParam());
    }
  }
};

TEST_P(RmsNormTest, BothPassesAreWithinTheBound) {
  const test::ScopedIsa isa(GetParam());
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat64}) {
    for (const std::int64_t rows : {0, 1, 3, 17, 130}) {
      for (const std::int64_t width : {1, 3, 16, 17, 63, 576}) {
        for (const bool adds : {false, true}) {
          Case of(dtype, rows, width, adds);
          rms_norm(of.forward(), *default_executor());
          rms_norm_backward(of.backward(), *default_executor());
          const Exact exact(of);
          const double bound = relative_bound(dtype, width);
          expect_close(values(of.y, dtype), exact.y, exact.y_norm, bound, "y");
          expect_close(values(of.grad_x, dtype), exact.grad_x, exact.grad_x_norm, bound, "grad_x");
          expect_close(values(of.grad_weight, dtype), exact.grad_weight, exact.grad_weight_norm,
                       relative_bound(dtype, width + rows), "grad_weight");
        }
      }
    }
  }
}

TEST_P(RmsNormTest, TheSumIsTheRoundedOne) {
  const test::ScopedIsa isa(GetParam());
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat64}) {
    Case of(dtype, 5, 19, true);
    rms_norm(of.forward(), serial_executor());
    for (std::int64_t i = 0; i < of.num_rows * of.width; ++i) {
      Bytes expected = nans(dtype, 1);
      store_number(expected.data(), dtype, 0,
                   load_number(of.x.data(), dtype, i) + load_number(of.residual.data(), dtype, i));
      EXPECT_EQ(load_number(of.sum.data(), dtype, i), load_number(expected.data(), dtype, 0));
    }
  }
}

TEST_P(RmsNormTest, BitsDoNotDependOnTheExecutor) {
  const test::ScopedIsa isa(GetParam());
  Case one(DType::kFloat32, 200, 77, true);
  Case three = one;
  rms_norm(one.forward(), serial_executor());
  rms_norm_backward(one.backward(), serial_executor());
  const ThreadPool pool(3);
  rms_norm(three.forward(), pool);
  rms_norm_backward(three.backward(), pool);
  EXPECT_TRUE(one.y == three.y && one.sum == three.sum && one.grad_x == three.grad_x &&
              one.grad_weight == three.grad_weight);
}

TEST_P(RmsNormTest, NanStaysInItsRow) {
  const test::ScopedIsa isa(GetParam());
  Case of(DType::kFloat32, 3, 20, false);
  store_number(of.x.data(), DType::kFloat32, 25, std::numeric_limits<double>::quiet_NaN());
  rms_norm(of.forward(), serial_executor());
  const std::vector<double> y = values(of.y, DType::kFloat32);
  for (std::size_t i = 0; i < y.size(); ++i) {
    EXPECT_EQ(std::isnan(y[i]), i / 20 == 1);
  }
}

INSTANTIATE_TEST_SUITE_P(Isas, RmsNormTest, testing::ValuesIn(test::all_isas()), test::isa_name);

TEST(RmsNormReferenceTest, BothPassesAreTheTextbook) {
  Case of(DType::kFloat64, 9, 31, true);
  rms_norm_reference(of.forward());
  rms_norm_backward_reference(of.backward());
  const Exact exact(of);
  const double bound = relative_bound(DType::kFloat64, 40);
  expect_close(values(of.y, DType::kFloat64), exact.y, exact.y_norm, bound, "y");
  expect_close(values(of.grad_x, DType::kFloat64), exact.grad_x, exact.grad_x_norm, bound,
               "grad_x");
  expect_close(values(of.grad_weight, DType::kFloat64), exact.grad_weight, exact.grad_weight_norm,
               bound, "grad_weight");
}

TEST(RmsNormArgumentsTest, AWrongShapeOrHalfAResidualIsRefused) {
  Case of(DType::kFloat32, 2, 4, true);
  RmsNormForward empty = of.forward();
  empty.width = 0;
  EXPECT_THROW(rms_norm(empty, serial_executor()), ShapeError);
  RmsNormForward half = of.forward();
  half.sum = nullptr;
  EXPECT_THROW(rms_norm(half, serial_executor()), ValueError);
}

TEST(RmsNormTileTest, RunsHoldEveryRowOnceInOrder) {
  for (std::int64_t rows = 0; rows <= 3000; rows += 7) {
    for (const std::int64_t size : {forward_rows(576), forward_rows(40000), backward_rows(rows)}) {
      std::int64_t next = 0;
      for (std::int64_t run = 0; run < num_runs(rows, size); ++run) {
        const RowRun range = run_at(run, rows, size);
        EXPECT_EQ(range.begin, next);
        EXPECT_GT(range.end, range.begin);
        next = range.end;
      }
      EXPECT_EQ(next, rows);
    }
    EXPECT_LE(num_runs(rows, backward_rows(rows)), 64);
  }
}

}  // namespace
}  // namespace paperlab::kernels
