#include "kernels/rope/rope.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/rope/tile.h"
#include "paperlab/core/error.h"
#include "paperlab/core/parallel.h"
#include "tests/kernels/rope_cases.h"
#include "tests/support/isa.h"

namespace paperlab::kernels {
namespace {

constexpr std::array<DType, 3> kDTypes = {DType::kFloat32, DType::kBFloat16, DType::kFloat64};

using rope_cases::Case;
using rope_cases::expect_right;
using rope_cases::Sizes;
using test::epsilon;

class RopeTest : public testing::TestWithParam<CpuIsa> {
 protected:
  void SetUp() override {
    if (!test::is_available(GetParam())) {
      GTEST_SKIP() << test::missing(GetParam());
    }
  }
};

TEST_P(RopeTest, RotationIsWithinTheBoundAndOtherLanesAreCopied) {
  const test::ScopedIsa isa(GetParam());
  for (const DType dtype : kDTypes) {
    for (const Sizes& size : rope_cases::odd_sizes()) {
      for (const std::int64_t table_batch : {std::int64_t{1}, size.batch}) {
        for (const bool inverse : {false, true}) {
          Case of(dtype, size, inverse ? 0 : 3, table_batch);
          rope(of.problem(inverse), of.out.data(), *default_executor());
          expect_right(of, inverse);
        }
      }
    }
  }
}

// With n = |low| + |high|, |c| + |s| <= sqrt(2) and c^2 + s^2 within eps of 1: the first pass'
// error eps n times sqrt(2), the second's eps sqrt(2) n, the tables' eps n; half an ulp of bfloat16
// 2^-8 times as often.
TEST_P(RopeTest, InverseAfterForwardIsTheInputAndTheNormIsKept) {
  const test::ScopedIsa isa(GetParam());
  for (const DType dtype : kDTypes) {
    Case of(dtype, {2, 6, 3, 70, 33}, 0, 1);
    rope(of.problem(false), of.out.data(), serial_executor());
    Case back(of);
    rope(of.problem_of_out(true), back.out.data(), serial_executor());
    const double relative = 4.0 * epsilon(dtype) + (dtype == DType::kBFloat16 ? 2.5 * 0x1p-8 : 0.0);
    of.for_each_head([&](std::int64_t b, std::int64_t t, std::int64_t h) {
      for (std::int64_t i = 0; i < 33; ++i) {
        const double low = of.input(b, t, h, i);
        const double high = of.input(b, t, h, 33 + i);
        const double bound = relative * (std::fabs(low) + std::fabs(high));
        EXPECT_LE(std::fabs(back.output(b, t, h, i) - low), bound);
        EXPECT_LE(std::fabs(back.output(b, t, h, 33 + i) - high), bound);
        EXPECT_NEAR(std::hypot(of.output(b, t, h, i), of.output(b, t, h, 33 + i)),
                    std::hypot(low, high), bound);
      }
    });
  }
}

TEST_P(RopeTest, ARowThatManySharesIsReadWhereItLies) {
  const test::ScopedIsa isa(GetParam());
  Case of(DType::kFloat32, {1, 3, 2, 20, 8}, 0, 1);
  rope(of.problem(false), of.out.data(), serial_executor());
  Rope expanded = of.problem(false);
  expanded.x.size[0] = 4;
  expanded.x.stride[0] = 0;
  std::vector<float> out(static_cast<std::size_t>(4 * of.numbers()));
  rope(expanded, out.data(), serial_executor());
  for (std::size_t i = 0; i < out.size(); ++i) {
    EXPECT_EQ(out[i], load_number(of.out.data(), DType::kFloat32,
                                  static_cast<std::int64_t>(i) % of.numbers()));
  }
}

TEST_P(RopeTest, BitsDependNeitherOnTheExecutorNorOnTheOtherPositions) {
  const test::ScopedIsa isa(GetParam());
  for (const DType dtype : kDTypes) {
    Case one(dtype, {2, 150, 3, 80, 40}, 0, 2);
    Case three = one;
    rope(one.problem(false), one.out.data(), serial_executor());
    rope(three.problem(false), three.out.data(), ThreadPool(3));
    EXPECT_EQ(one.out, three.out);
    Case last(dtype, {1, 1, 3, 80, 40}, 0, 1);
    Rope problem = one.problem(false);  // position 149 of row 1 alone
    const std::int64_t word = dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2;
    const std::int64_t table = std::int64_t{150 + 149} * 40 * (dtype == DType::kFloat64 ? 8 : 4);
    problem.x.data = one.x.data() + (problem.x.stride[0] + 149 * problem.x.stride[1]) * word;
    problem.x.size[0] = problem.x.size[1] = problem.table_batch = 1;
    problem.cos = one.cos.data() + table;
    problem.sin = one.sin.data() + table;
    rope(problem, last.out.data(), serial_executor());
    for (std::int64_t i = 0; i < 240; ++i) {
      EXPECT_EQ(load_number(last.out.data(), dtype, i),
                load_number(one.out.data(), dtype, one.at(1, 149, 0) + i));
    }
  }
}

TEST_P(RopeTest, NanStaysInItsPair) {
  const test::ScopedIsa isa(GetParam());
  Case of(DType::kFloat32, {1, 1, 2, 50, 21}, 0, 1);
  const double nan = std::numeric_limits<double>::quiet_NaN();
  store_number(of.x.data(), DType::kFloat32, 5, nan);
  rope(of.problem(false), of.out.data(), serial_executor());
  for (std::int64_t i = 0; i < 100; ++i) {
    EXPECT_EQ(std::isnan(load_number(of.out.data(), DType::kFloat32, i)), i == 5 || i == 26);
  }
}

INSTANTIATE_TEST_SUITE_P(Isas, RopeTest, testing::ValuesIn(test::all_isas()), test::isa_name);

TEST(RopeReferenceTest, TheDefinitionIsWithinTheBound) {
  for (const DType dtype : kDTypes) {
    for (const bool inverse : {false, true}) {
      Case of(dtype, {2, 3, 2, 21, 9}, 4, 2);
      rope_reference(of.problem(inverse), of.out.data());
      expect_right(of, inverse);
    }
  }
}

TEST(RopeArgumentsTest, WrongSizesAreRefused) {
  Case of(DType::kFloat32, {2, 2, 2, 6, 3}, 0, 1);
  const auto refuses = [&](auto change) {
    Rope problem = of.problem(false);
    change(problem);
    EXPECT_THROW(rope(problem, of.out.data(), serial_executor()), ShapeError);
  };
  refuses([](Rope& problem) { problem.x.size[2] = -1; });
  refuses([](Rope& problem) { problem.x.stride[3] = 2; });
  refuses([](Rope& problem) { problem.half = 4; });
  refuses([](Rope& problem) { problem.half = -1; });
  refuses([](Rope& problem) { problem.table_batch = 3; });
}

TEST(RopeArgumentsTest, Float16IsRefused) {
  Case of(DType::kFloat16, {1, 2, 2, 6, 3}, 0, 1);
  EXPECT_THROW(rope(of.problem(false), of.out.data(), serial_executor()), DTypeError);
}

TEST(RopeTileTest, ATaskHoldsAtLeastOnePositionAndNotTooMuch) {
  for (std::int64_t numbers = 0; numbers < 100000; numbers = numbers * 3 / 2 + 1) {
    const std::int64_t positions = positions_of_task(numbers);
    EXPECT_GE(positions, 1);
    EXPECT_TRUE(positions == 1 || positions * numbers <= 16384);
  }
}

}  // namespace
}  // namespace paperlab::kernels
