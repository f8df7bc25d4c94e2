// exp of vec_math.h on each instruction set.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "tests/kernels/vec_probe.h"
#include "tests/support/error_measure.h"
#include "tests/support/isa.h"

namespace paperlab::kernels {
namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kLargest = 0x1.62e42fefa39efp+9;    // the last x whose exp is finite
constexpr double kSmallest = -0x1.6232bdd7abcd2p+9;  // the last x whose exp is normal

std::vector<double> exp_of(CpuIsa isa, const std::vector<double>& x) {
  const VecProbe probe = vec_probe(isa);
  std::vector<double> y(x.size());
  for (std::size_t i = 0; i < x.size(); i += 8) {
    std::array<double, 8> in{};
    std::array<double, 8> out{};
    const std::size_t count = std::min<std::size_t>(8, x.size() - i);
    std::copy_n(x.begin() + static_cast<std::ptrdiff_t>(i), count, in.begin());
    probe.exp(in.data(), out.data());
    std::copy_n(out.begin(), count, y.begin() + static_cast<std::ptrdiff_t>(i));
  }
  return y;
}

double exp_of(CpuIsa isa, double x) { return exp_of(isa, std::vector<double>{x})[0]; }

// Distance to the exact value in units of the exact value's last place.
double ulps(double x, double y) {
  const long double exact = std::exp(static_cast<long double>(x));
  const long double ulp = std::ldexp(1.0L, std::ilogb(exact) - 52);
  const long double error = std::fabs(y - exact) / ulp;
  return std::isnan(error) ? kInf : static_cast<double>(error);
}

// The whole range, and more densely what the kernels use: logits below 0 and scores around 0.
std::vector<double> sweep() {
  std::vector<double> x;
  const auto add = [&](double from, double to, int count) {
    for (int i = 0; i < count; ++i) {
      x.push_back(from + (to - from) * (i + 0.5) / count);
    }
  };
  add(kSmallest, kLargest, 200000);
  add(-40.0, 40.0, 100000);
  add(-1.0, 1.0, 100000);
  add(-0x1p-20, 0x1p-20, 10000);
  for (int n = -1021; n <= 1023; ++n) {  // where the argument reduction changes its integer
    const double edge = (n + 0.5) * 0x1.62e42fefa39efp-1;
    x.insert(x.end(), {edge, std::nextafter(edge, kInf), std::nextafter(edge, -kInf)});
  }
  std::erase_if(x, [](double value) { return value < kSmallest || value > kLargest; });
  return x;
}

class VecMathTest : public testing::TestWithParam<CpuIsa> {
 protected:
  void SetUp() override {
    if (!test::is_available(GetParam())) {
      GTEST_SKIP() << test::missing(GetParam());
    }
  }
};

TEST_P(VecMathTest, ErrorOfExpIsBelowOneUlp) {
  const std::vector<double> x = sweep();
  const std::vector<double> y = exp_of(GetParam(), x);
  std::size_t worst = 0;
  double most = 0.0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double here = ulps(x[i], y[i]);
    if (here > most) {
      most = here;
      worst = i;
    }
  }
  EXPECT_LT(most, 1.0) << "exp(" << x[worst] << ") = " << y[worst];
  RecordProperty("largest_error_ulps", std::to_string(most));
}

TEST_P(VecMathTest, ExpHasTheSameBitsOnEachInstructionSet) {
  std::vector<double> x = sweep();
  x.insert(x.end(), {0.0, -0.0, kInf, -kInf, 1e300, -1e300, 5e-324, kLargest, kSmallest});
  EXPECT_TRUE(test::has_same_bits(exp_of(GetParam(), x), exp_of(CpuIsa::kGeneric, x)));
}

TEST_P(VecMathTest, ExpOfZeroIsExactlyOne) {
  EXPECT_EQ(exp_of(GetParam(), 0.0), 1.0);
  EXPECT_EQ(exp_of(GetParam(), -0.0), 1.0);
  EXPECT_EQ(exp_of(GetParam(), 5e-324), 1.0);
}

TEST_P(VecMathTest, ExpOverflowsToInfinity) {
  EXPECT_LT(ulps(kLargest, exp_of(GetParam(), kLargest)), 1.0);
  EXPECT_EQ(exp_of(GetParam(), std::nextafter(kLargest, kInf)), kInf);
  EXPECT_EQ(exp_of(GetParam(), 800.0), kInf);
  EXPECT_EQ(exp_of(GetParam(), 1e300), kInf);
  EXPECT_EQ(exp_of(GetParam(), kInf), kInf);
}

TEST_P(VecMathTest, ExpBelowTheSmallestNormalNumberIsZero) {
  EXPECT_LT(ulps(kSmallest, exp_of(GetParam(), kSmallest)), 1.0);
  for (const double x : {std::nextafter(kSmallest, -kInf), -720.0, -1e300, -kInf}) {
    EXPECT_EQ(std::bit_cast<std::uint64_t>(exp_of(GetParam(), x)), 0U) << x;
  }
}

TEST_P(VecMathTest, ExpOfNanIsNan) {
  EXPECT_TRUE(std::isnan(exp_of(GetParam(), kNan)));
  EXPECT_TRUE(std::isnan(exp_of(GetParam(), -kNan)));
}

TEST_P(VecMathTest, ALaneDoesNotDependOnItsNeighbours) {
  const std::vector<double> mixed = {1.0, kNan, kInf, -kInf, -800.0, 800.0, 0.5, -3.25};
  const std::vector<double> together = exp_of(GetParam(), mixed);
  for (std::size_t i = 0; i < mixed.size(); ++i) {
    EXPECT_EQ(std::bit_cast<std::uint64_t>(together[i]),
              std::bit_cast<std::uint64_t>(exp_of(GetParam(), mixed[i])));
  }
}

INSTANTIATE_TEST_SUITE_P(Isas, VecMathTest, testing::ValuesIn(test::all_isas()), test::isa_name);

}  // namespace
}  // namespace paperlab::kernels
