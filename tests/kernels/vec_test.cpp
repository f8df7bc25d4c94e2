// vec.h on each instruction set: every operation gives the plain one's bits, lane by lane.
#include <gtest/gtest.h>

#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

#include "paperlab/core/rng.h"
#include "tests/kernels/vec_probe.h"
#include "tests/support/error_measure.h"
#include "tests/support/isa.h"

namespace paperlab::kernels {
namespace {

using Lanes = std::array<double, 8>;

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kInf = std::numeric_limits<double>::infinity();

// Normal numbers of very different sizes.
Lanes random_lanes(std::uint64_t stream) {
  Lanes lanes{};
  for (std::size_t i = 0; i < lanes.size(); ++i) {
    const double exponent = 40.0 * philox_normal(3, stream, 2 * i);
    lanes[i] = philox_normal(3, stream, 2 * i + 1) * std::exp2(std::trunc(exponent));
  }
  return lanes;
}

template <class F>
Lanes each_lane(F value) {
  Lanes lanes{};
  for (std::size_t i = 0; i < lanes.size(); ++i) {
    lanes[i] = value(i);
  }
  return lanes;
}

class VecTest : public testing::TestWithParam<CpuIsa> {
 protected:
  void SetUp() override {
    if (!test::is_available(GetParam())) {
      GTEST_SKIP() << test::missing(GetParam());
    }
    probe_ = vec_probe(GetParam());
  }

  VecProbe probe_{};
};

TEST_P(VecTest, ArithmeticIsThatOfEachLane) {
  for (std::uint64_t stream = 0; stream < 300; stream += 3) {
    const Lanes a = random_lanes(stream);
    const Lanes b = random_lanes(stream + 1);
    const Lanes c = random_lanes(stream + 2);
    Lanes y{};
    probe_.add(a.data(), b.data(), y.data());
    EXPECT_TRUE(test::has_same_bits(y, each_lane([&](auto i) { return a[i] + b[i]; })));
    probe_.subtract(a.data(), b.data(), y.data());
    EXPECT_TRUE(test::has_same_bits(y, each_lane([&](auto i) { return a[i] - b[i]; })));
    probe_.multiply(a.data(), b.data(), y.data());
    EXPECT_TRUE(test::has_same_bits(y, each_lane([&](auto i) { return a[i] * b[i]; })));
    probe_.divide(a.data(), b.data(), y.data());
    EXPECT_TRUE(test::has_same_bits(y, each_lane([&](auto i) { return a[i] / b[i]; })));
    probe_.fma(a.data(), b.data(), c.data(), y.data());
    EXPECT_TRUE(
        test::has_same_bits(y, each_lane([&](auto i) { return std::fma(a[i], b[i], c[i]); })));
  }
}

TEST_P(VecTest, FmaRoundsOnce) {
  // (1 + 2^-52)^2 - (1 + 2^-51) = 2^-104, which two roundings lose.
  const Lanes a = each_lane([](auto) { return 1.0 + 0x1p-52; });
  const Lanes c = each_lane([](auto) { return -(1.0 + 0x1p-51); });
  Lanes y{};
  probe_.fma(a.data(), a.data(), c.data(), y.data());
  EXPECT_TRUE(test::has_same_bits(y, each_lane([](auto) { return 0x1p-104; })));
}

TEST_P(VecTest, SelectTakesTheFirstWhereTheBitIsSet) {
  const Lanes a = random_lanes(1);
  const Lanes b = random_lanes(2);
  for (unsigned lanes = 0; lanes < 256; ++lanes) {
    Lanes y{};
    probe_.select(static_cast<std::uint8_t>(lanes), a.data(), b.data(), y.data());
    EXPECT_TRUE(test::has_same_bits(
        y, each_lane([&](auto i) { return ((lanes >> i) & 1U) != 0 ? a[i] : b[i]; })));
  }
}

TEST_P(VecTest, SelectPassesNanAndInfinityOn) {
  const Lanes a = {kNan, kInf, -kInf, 0.0, kNan, kInf, -kInf, 0.0};
  const Lanes b = each_lane([](auto) { return 1.0; });
  Lanes y{};
  probe_.select(0x0FU, a.data(), b.data(), y.data());
  EXPECT_TRUE(std::isnan(y[0]));
  EXPECT_EQ(y[1], kInf);
  EXPECT_EQ(y[2], -kInf);
  EXPECT_EQ(y[4], 1.0);
}

TEST_P(VecTest, GreaterIsStrictAndFalseForNan) {
  const Lanes a = {1.0, 2.0, 2.0, kNan, 0.0, kInf, -kInf, 0.0};
  const Lanes b = {2.0, 2.0, 1.0, 0.0, kNan, 1.0, 1.0, -0.0};
  EXPECT_EQ(probe_.greater(a.data(), b.data()), 0b00100100U);
}

TEST_P(VecTest, UnorderedFindsNan) {
  const Lanes a = {kNan, 0.0, kInf, -kInf, -kNan, 1.0, kNan, -1.0};
  EXPECT_EQ(probe_.unordered(a.data()), 0b01010001U);
}

TEST_P(VecTest, AddExponentMultipliesByAPowerOfTwo) {
  const Lanes a = each_lane([](auto i) { return 1.0 + 0.1 * static_cast<double>(i); });
  const Lanes n =  // 1.5 * 2^52 + k holds k in its low bits
      each_lane([](auto i) { return 0x1.8p52 + 100.0 * (static_cast<double>(i) - 4.0); });
  Lanes y{};
  probe_.add_exponent(a.data(), n.data(), y.data());
  EXPECT_TRUE(test::has_same_bits(
      y, each_lane([&](auto i) { return std::ldexp(a[i], 100 * (static_cast<int>(i) - 4)); })));
}

TEST_P(VecTest, SumAddsNeighboursFirst) {
  for (std::uint64_t stream = 0; stream < 100; ++stream) {
    const Lanes x = random_lanes(stream);
    const double expected = ((x[0] + x[1]) + (x[2] + x[3])) + ((x[4] + x[5]) + (x[6] + x[7]));
    EXPECT_EQ(std::bit_cast<std::uint64_t>(probe_.sum(x.data())),
              std::bit_cast<std::uint64_t>(expected));
  }
}

INSTANTIATE_TEST_SUITE_P(Isas, VecTest, testing::ValuesIn(test::all_isas()), test::isa_name);

}  // namespace
}  // namespace paperlab::kernels
