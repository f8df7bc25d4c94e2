#include "kernels/swiglu/swiglu.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "kernels/swiglu/tile.h"
#include "paperlab/core/error.h"
#include "paperlab/core/parallel.h"
#include "tests/kernels/swiglu_cases.h"
#include "tests/support/isa.h"

namespace paperlab::kernels {
namespace {

using swiglu_cases::Case;
using swiglu_cases::expect_right;

class SwigluTest : public testing::TestWithParam<CpuIsa> {
 protected:
  void SetUp() override {
    if (!test::is_available(GetParam())) {
      GTEST_SKIP() << test::missing(GetParam());
    }
  }
};

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
  EXPECT_TRUE(one.has_same_results(three));
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

TEST(SwigluArgumentsTest, Float16IsRefused) {
  Case of(DType::kFloat16, 1, 2, 2);
  EXPECT_THROW(of.run(serial_executor()), DTypeError);
  const swiglu_cases::Matrix& grad = of.grad_y;
  EXPECT_THROW(swiglu_backward(of.problem(), grad.view(), of.grad_gate.view(), of.grad_up.view(),
                               serial_executor()),
               DTypeError);
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
