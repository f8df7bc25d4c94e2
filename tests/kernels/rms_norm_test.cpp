#include "kernels/rms_norm/rms_norm.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "kernels/rms_norm/tile.h"
#include "paperlab/core/error.h"
#include "paperlab/core/parallel.h"
#include "tests/kernels/rms_norm_cases.h"
#include "tests/support/isa.h"

namespace paperlab::kernels {
namespace {

using rms_norm_cases::Case;
using rms_norm_cases::Exact;
using rms_norm_cases::expect_close;
using rms_norm_cases::expect_right;
using rms_norm_cases::relative_bound;

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
          expect_right(of);
        }
      }
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
  EXPECT_TRUE(one.has_same_results(three));
}

TEST_P(RmsNormTest, NanStaysInItsRow) {
  const test::ScopedIsa isa(GetParam());
  Case of(DType::kFloat32, 3, 20, false);
  of.x.set(25, std::numeric_limits<double>::quiet_NaN());
  rms_norm(of.forward(), serial_executor());
  const std::vector<double> y = of.y.values();
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
  expect_close(of.y, exact.y, exact.y_norm, bound, "y");
  expect_close(of.grad_x, exact.grad_x, exact.grad_x_norm, bound, "grad_x");
  expect_close(of.grad_weight, exact.grad_weight, exact.grad_weight_norm, bound, "grad_weight");
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

TEST(RmsNormArgumentsTest, Float16IsRefused) {
  Case of(DType::kFloat16, 2, 4, true);
  EXPECT_THROW(rms_norm(of.forward(), serial_executor()), DTypeError);
  EXPECT_THROW(rms_norm_backward(of.backward(), serial_executor()), DTypeError);
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
