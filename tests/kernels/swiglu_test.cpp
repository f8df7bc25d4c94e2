#include "kernels/swiglu/swiglu.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "kernels/common/number.h"
#include "kernels/swiglu/tile.h"
#include "paperlab/core/error.h"
#include "paperlab/core/parallel.h"
#include "paperlab/core/rng.h"
#include "tests/support/isa.h"

namespace paperlab::kernels {
namespace {

// [N, F] in memory whose rows are `stride` apart; unset bytes are 0xFF, which is NaN in every
// dtype.
struct Matrix {
  Matrix(DType type, std::int64_t rows, std::int64_t columns, std::int64_t apart)
      : dtype(type),
        num_rows(rows),
        width(columns),
        stride(apart),
        bytes(static_cast<std::size_t>(rows * apart * 8), std::byte{0xFF}) {}

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
    return load_number(bytes.data(), dtype, row * stride + f);
  }
  void set(std::int64_t row, std::int64_t f, double x) {
    store_number(bytes.data(), dtype, row * stride + f, x);
  }
  Rows view() const { return {bytes.data(), stride}; }
  MutableRows view() { return {bytes.data(), stride}; }
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
  std::vector<std::byte> bytes;
};

struct Case {
  Case(DType dtype, std::int64_t rows, std::int64_t width, std::int64_t stride, double scale = 2.0)
      : gate(dtype, rows, width, stride),
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

  Matrix gate;
  Matrix up;
  Matrix grad_y;
  Matrix y;
  Matrix grad_gate;
  Matrix grad_up;
};

// Some sixteen roundings, of exp, the quotient and the products, relative to the sum of the
// absolute values, and the rounding of exp's argument, which its exponential multiplies by |gate|;
// a bfloat16 result has half an ulp more, and numbers below the smallest normal are lost.
bool is_close(DType dtype, double gate, double got, double exact, double norm) {
  const double eps = dtype == DType::kFloat64 ? 0x1p-52 : 0x1p-23;
  const double half_ulp = dtype == DType::kBFloat16 ? 0x1p-8 * std::fabs(exact) : 0.0;
  return std::fabs(got - exact) <= (16.0 + std::fabs(gate)) * eps * norm + half_ulp + 0x1p-120;
}

class SwigluTest : public testing::TestWithParam<CpuIsa> {
 protected:
  void SetUp() override {
    if (!test::is_available(GetParam())) {
      GTEST_SKIP() << test::missing(GetParam());
    }
  }
};

void expect_right(const Case& of) {
  const DType dtype = of.gate.dtype;
  for (std::int64_t row = 0; row < of.gate.num_rows; ++row) {
    for (std::int64_t f = 0; f < of.gate.width; ++f) {
      const double x = of.gate.get(row, f);
      const double up = of.up.get(row, f);
      const double grad = of.grad_y.get(row, f);
      const double s = 1.0 / (1.0 + std::exp(-x));
      const double other = 1.0 / (1.0 + std::exp(x));
      EXPECT_TRUE(is_close(dtype, x, of.y.get(row, f), x * s * up, std::fabs(x * s * up)));
      EXPECT_TRUE(
          is_close(dtype, x, of.grad_up.get(row, f), grad * x * s, std::fabs(grad * x * s)));
      EXPECT_TRUE(is_close(dtype, x, of.grad_gate.get(row, f), grad * up * s * (1.0 + x * other),
                           std::fabs(grad * up * s) * (1.0 + std::fabs(x * other))))
          << of.grad_gate.get(row, f) << " at gate " << x;
    }
  }
  EXPECT_TRUE(of.y.has_untouched_gaps() && of.grad_gate.has_untouched_gaps() &&
              of.grad_up.has_untouched_gaps());
}

TEST_P(SwigluTest, BothPassesAreWithinTheBound) {
  const test::ScopedIsa isa(GetParam());
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat64}) {
    for (const std::int64_t rows : {0, 1, 5}) {
      for (const std::int64_t width : {1, 3, 16, 65, 20000}) {
        for (const std::int64_t gap : {0, 7}) {
          Case of(dtype, rows, width, width + gap);
          of.run(*default_executor());
          expect_right(of);
        }
      }
    }
  }
}

TEST_P(SwigluTest, LargeGatesNeitherOverflowNorCancel) {
  const test::ScopedIsa isa(GetParam());
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat64}) {
    Case of(dtype, 4, 100, 100, 60.0);
    of.run(serial_executor());
    expect_right(of);
  }
}

TEST_P(SwigluTest, BitsDoNotDependOnTheExecutor) {
  const test::ScopedIsa isa(GetParam());
  Case one(DType::kFloat32, 3, 40000, 40000);
  Case three = one;
  one.run(serial_executor());
  three.run(ThreadPool(3));
  EXPECT_TRUE(one.y.bytes == three.y.bytes && one.grad_gate.bytes == three.grad_gate.bytes &&
              one.grad_up.bytes == three.grad_up.bytes);
}

TEST_P(SwigluTest, NanStaysWhereItIs) {
  const test::ScopedIsa isa(GetParam());
  Case of(DType::kFloat32, 1, 21, 21);
  of.gate.set(0, 5, std::numeric_limits<double>::quiet_NaN());
  of.run(serial_executor());
  for (std::int64_t f = 0; f < 21; ++f) {
    EXPECT_EQ(std::isnan(of.y.get(0, f)), f == 5);
    EXPECT_EQ(std::isnan(of.grad_gate.get(0, f)), f == 5);
  }
}

INSTANTIATE_TEST_SUITE_P(Isas, SwigluTest, testing::ValuesIn(test::all_isas()), test::isa_name);

TEST(SwigluArgumentsTest, ANegativeSizeIsRefused) {
  Case of(DType::kFloat32, 1, 2, 2);
  Swiglu problem = of.problem();
  problem.width = -1;
  EXPECT_THROW(swiglu(problem, of.y.view(), serial_executor()), ShapeError);
}

TEST(SwigluTileTest, PiecesHoldEveryElementOfARowOnce) {
  for (std::int64_t width = 1; width <= 5 * kTaskElements; width = width * 3 / 2 + 1) {
    std::int64_t next = 0;
    for (std::int64_t piece = 0; piece < pieces_of_row(width); ++piece) {
      const RowPiece part = row_piece(piece, width);
      EXPECT_EQ(part.begin, next);
      EXPECT_GT(part.end, part.begin);
      next = part.end;
    }
    EXPECT_EQ(next, width);
    EXPECT_GE(rows_of_task(width), 1);
    EXPECT_TRUE(rows_of_task(width) == 1 || rows_of_task(width) * width <= kTaskElements);
  }
}

}  // namespace
}  // namespace paperlab::kernels
