#include "kernels/rope/rope.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <complex>
#include <limits>
#include <vector>

#include "kernels/common/number.h"
#include "kernels/rope/tile.h"
#include "paperlab/core/error.h"
#include "paperlab/core/parallel.h"
#include "paperlab/core/rng.h"
#include "tests/support/isa.h"

namespace paperlab::kernels {
namespace {

constexpr std::array<DType, 3> kDTypes = {DType::kFloat32, DType::kBFloat16, DType::kFloat64};

double epsilon(DType dtype) { return dtype == DType::kFloat64 ? 0x1p-52 : 0x1p-23; }

// 0xFF is NaN in every dtype.
std::vector<std::byte> nans(std::int64_t numbers) {
  return std::vector<std::byte>(static_cast<std::size_t>(numbers * 8), std::byte{0xFF});
}

struct Sizes {
  std::int64_t batch;
  std::int64_t length;
  std::int64_t heads;
  std::int64_t width;
  std::int64_t half;
};

// x in memory [B, H, T, D + gap], which a projection's split into heads is not; NaN in the gaps.
struct Case {
  Case(DType type, const Sizes& sizes, std::int64_t gap, std::int64_t batches_of_table)
      : dtype(type),
        size(sizes),
        pitch(sizes.width + gap),
        table_batch(batches_of_table),
        x(nans(sizes.batch * sizes.length * sizes.heads * pitch)),
        out(nans(numbers() + 16)),
        cos(nans(table_batch * sizes.length * sizes.half)),
        sin(cos) {
    for (std::int64_t i = 0; i < numbers(); ++i) {
      store_number(x.data(), dtype, i / size.width * pitch + i % size.width,
                   philox_normal(5, 1, static_cast<std::uint64_t>(i)));
    }
    for (std::int64_t i = 0; i < table_batch * size.length * size.half; ++i) {
      const double angle = 3.0 * philox_normal(5, 2, static_cast<std::uint64_t>(i));
      store_number(cos.data(), statistics_dtype(dtype), i, std::cos(angle));
      store_number(sin.data(), statistics_dtype(dtype), i, std::sin(angle));
    }
  }

  std::int64_t numbers() const { return size.batch * size.length * size.heads * size.width; }
  Rope problem(bool inverse) const {
    const std::int64_t of_head = size.length * pitch;
    return {{x.data(),
             dtype,
             {size.batch, size.length, size.heads, size.width},
             {size.heads * of_head, pitch, of_head, 1}},
            size.half,
            table_batch,
            cos.data(),
            sin.data(),
            inverse};
  }
  // The rotation of out, which is contiguous.
  Rope problem_of_out(bool inverse) const {
    Rope of_out = problem(inverse);
    const std::int64_t of_position = size.heads * size.width;
    of_out.x = {out.data(),
                dtype,
                {size.batch, size.length, size.heads, size.width},
                {size.length * of_position, of_position, size.width, 1}};
    return of_out;
  }
  double input(std::int64_t b, std::int64_t t, std::int64_t h, std::int64_t i) const {
    return load_number(x.data(), dtype, ((b * size.heads + h) * size.length + t) * pitch + i);
  }
  std::int64_t at(std::int64_t b, std::int64_t t, std::int64_t h) const {
    return ((b * size.length + t) * size.heads + h) * size.width;
  }
  double output(std::int64_t b, std::int64_t t, std::int64_t h, std::int64_t i) const {
    return load_number(out.data(), dtype, at(b, t, h) + i);
  }
  std::complex<double> turn(std::int64_t b, std::int64_t t, std::int64_t i) const {
    const std::int64_t entry = ((table_batch == 1 ? 0 : b) * size.length + t) * size.half + i;
    return {load_number(cos.data(), statistics_dtype(dtype), entry),
            load_number(sin.data(), statistics_dtype(dtype), entry)};
  }
  // Calls body(b, t, h) for each head.
  template <class F>
  void for_each_head(F body) const {
    for (std::int64_t b = 0; b < size.batch; ++b) {
      for (std::int64_t t = 0; t < size.length; ++t) {
        for (std::int64_t h = 0; h < size.heads; ++h) {
          body(b, t, h);
        }
      }
    }
  }

  DType dtype;
  Sizes size;
  std::int64_t pitch;
  std::int64_t table_batch;
  std::vector<std::byte> x;
  std::vector<std::byte> out;
  std::vector<std::byte> cos;
  std::vector<std::byte> sin;
};

class RopeTest : public testing::TestWithParam<CpuIsa> {
 protected:
  void SetUp() override {
    if (!test::is_available(GetParam())) {
      GTEST_SKIP() << test::missing(GetParam());
    }
  }
};

// Two products and a sum are three roundings, together eps (|a| + |b|) but for the roundings of
// roundings; a bfloat16 result has half an ulp more.
void expect_close(DType dtype, double got, double exact, double norm) {
  const double half_ulp = dtype == DType::kBFloat16 ? 0x1p-8 * std::fabs(exact) : 0.0;
  EXPECT_LE(std::fabs(got - exact), 1.01 * epsilon(dtype) * norm + half_ulp);
}

void expect_head(const Case& of, bool inverse, std::int64_t b, std::int64_t t, std::int64_t h) {
  const std::int64_t half = of.size.half;
  for (std::int64_t i = 0; i < half; ++i) {
    const std::complex<double> turn = of.turn(b, t, i);
    const std::complex<double> x(of.input(b, t, h, i), of.input(b, t, h, half + i));
    const std::complex<double> exact = x * (inverse ? std::conj(turn) : turn);
    const double c = std::fabs(turn.real());
    const double s = std::fabs(turn.imag());
    const double low = std::fabs(x.real());
    const double high = std::fabs(x.imag());
    expect_close(of.dtype, of.output(b, t, h, i), exact.real(), low * c + high * s);
    expect_close(of.dtype, of.output(b, t, h, half + i), exact.imag(), high * c + low * s);
  }
  for (std::int64_t i = 2 * half; i < of.size.width; ++i) {
    EXPECT_EQ(of.output(b, t, h, i), of.input(b, t, h, i));
  }
}

void expect_right(const Case& of, bool inverse) {
  of.for_each_head(
      [&](std::int64_t b, std::int64_t t, std::int64_t h) { expect_head(of, inverse, b, t, h); });
  for (std::int64_t i = of.numbers(); i < of.numbers() + 16; ++i) {
    EXPECT_TRUE(std::isnan(load_number(of.out.data(), of.dtype, i))) << "beyond the end";
  }
}

TEST_P(RopeTest, RotationIsWithinTheBoundAndOtherLanesAreCopied) {
  const test::ScopedIsa isa(GetParam());
  const std::vector<Sizes> all = {
      {1, 1, 9, 64, 32},   {2, 3, 2, 2, 1},  {2, 5, 3, 7, 1},    {3, 2, 1, 33, 16},
      {2, 4, 2, 40, 19},   {1, 7, 3, 96, 8}, {2, 2, 2, 130, 65}, {1, 3, 2, 5, 0},
      {0, 3, 2, 8, 4},     {2, 0, 2, 8, 4},  {2, 3, 0, 8, 4},    {2, 3, 2, 0, 0},
      {2, 40, 5, 128, 64},
  };
  for (const DType dtype : kDTypes) {
    for (const Sizes& size : all) {
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

TEST(RopeTileTest, ATaskHoldsAtLeastOnePositionAndNotTooMuch) {
  for (std::int64_t numbers = 0; numbers < 100000; numbers = numbers * 3 / 2 + 1) {
    const std::int64_t positions = positions_of_task(numbers);
    EXPECT_GE(positions, 1);
    EXPECT_TRUE(positions == 1 || positions * numbers <= 16384);
  }
}

}  // namespace
}  // namespace paperlab::kernels
