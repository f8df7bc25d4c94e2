// vec_float.h on each instruction set, against the C library and lane by lane.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "paperlab/core/rng.h"
#include "tests/kernels/vec_float_probe.h"
#include "tests/support/attention_tensors.h"
#include "tests/support/isa.h"

namespace paperlab::kernels {
namespace {

using Lanes = std::array<float, 16>;
using Function = void (*)(const float* x, float* y);

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

std::uint32_t bits_of(float x) { return std::bit_cast<std::uint32_t>(x); }

std::vector<float> each(Function function, const std::vector<float>& x) {
  std::vector<float> y(x.size());
  for (std::size_t i = 0; i < x.size(); i += 16) {
    Lanes in;
    Lanes out;
    in.fill(1.0F);
    const std::size_t count = std::min<std::size_t>(16, x.size() - i);
    std::copy_n(x.begin() + static_cast<std::ptrdiff_t>(i), count, in.begin());
    function(in.data(), out.data());
    std::copy_n(out.begin(), count, y.begin() + static_cast<std::ptrdiff_t>(i));
  }
  return y;
}

float one(Function function, float x) { return each(function, {x})[0]; }

struct Worst {
  double error = 0.0;
  float x = 0.0F;
  float y = 0.0F;
};

// The largest error in units of `unit(exact)`; a NaN is infinitely far.
template <class Exact, class Unit>
Worst worst_of(Function function, const std::vector<float>& x, Exact exact, Unit unit) {
  const std::vector<float> y = each(function, x);
  Worst worst;
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double wanted = exact(static_cast<double>(x[i]));
    const double error = std::fabs(static_cast<double>(y[i]) - wanted) / unit(wanted);
    if (!(error <= worst.error)) {
      worst = {std::isnan(error) ? std::numeric_limits<double>::infinity() : error, x[i], y[i]};
    }
  }
  return worst;
}

double ulp_of(double x) { return std::ldexp(1.0, std::ilogb(x) - 23); }

std::vector<float> evenly(double from, double to, int count) {
  std::vector<float> x(static_cast<std::size_t>(count));
  for (int i = 0; i < count; ++i) {
    x[static_cast<std::size_t>(i)] = static_cast<float>(from + (to - from) * (i + 0.5) / count);
  }
  return x;
}

// -87.33..88, more densely where softmax has its weight, and where the power of two changes.
std::vector<float> exponents() {
  std::vector<float> x = evenly(-87.33, 88.0, 300'000);
  for (const auto& [from, to] : {std::pair{-20.0, 0.0}, {-1.0, 1.0}, {-1e-5, 1e-5}}) {
    const std::vector<float> more = evenly(from, to, 100'000);
    x.insert(x.end(), more.begin(), more.end());
  }
  for (int n = -125; n < 126; ++n) {
    const auto edge = static_cast<float>((n + 0.5) * 0x1.62e42fefa39efp-1);
    x.insert(x.end(), {edge, std::nextafter(edge, kInf), std::nextafter(edge, -kInf)});
  }
  return x;
}

class VecFloatTest : public testing::TestWithParam<CpuIsa> {
 protected:
  void SetUp() override {
    if (!test::is_available(GetParam())) {
      GTEST_SKIP() << test::missing(GetParam());
    }
    probe_ = vec_float_probe(GetParam());
  }

  bool is_fused() const { return GetParam() != CpuIsa::kGeneric; }

  VecFloatProbe probe_{};
};

TEST_P(VecFloatTest, Set1FillsEveryLaneWithTheSameBits) {
  for (const float x : {0.0F, 1.5F, -3.0e38F, 1e-40F, kInf, -kInf}) {
    Lanes y{};
    probe_.set1(x, y.data());
    for (const float lane : y) {
      EXPECT_EQ(bits_of(lane), bits_of(x));
    }
  }
}

TEST_P(VecFloatTest, FmaRoundsOnceOrTwice) {
  for (std::uint64_t stream = 0; stream < 300; stream += 3) {
    Lanes a{}, b{}, c{}, y{};
    for (std::size_t i = 0; i < a.size(); ++i) {
      a[i] = static_cast<float>(philox_normal(3, stream, i));
      b[i] = static_cast<float>(philox_normal(3, stream + 1, i));
      c[i] = static_cast<float>(philox_normal(3, stream + 2, i));
    }
    probe_.fma(a.data(), b.data(), c.data(), y.data());
    for (std::size_t i = 0; i < a.size(); ++i) {
      const float product = a[i] * b[i];
      EXPECT_EQ(y[i], is_fused() ? std::fma(a[i], b[i], c[i]) : product + c[i]);
    }
  }
}

TEST_P(VecFloatTest, MaxIsTheSecondNumberWhereEitherIsNan) {
  const Lanes a = {1.0F,  -2.0F, kNan, 3.0F,  -kInf, kInf, -0.5F, kNan,
                   1e30F, 0.0F,  5.0F, -5.0F, kNan,  4.0F, -kInf, 2.0F};
  const Lanes b = {2.0F,   -3.0F, 1.0F, kNan,  0.0F,  1.0F, -0.25F, kNan,
                   -1e30F, 1.0F,  5.0F, -4.0F, -kInf, 3.0F, -kInf,  kNan};
  Lanes y{};
  probe_.max(a.data(), b.data(), y.data());
  for (std::size_t i = 0; i < a.size(); ++i) {
    EXPECT_EQ(bits_of(y[i]), bits_of(a[i] > b[i] ? a[i] : b[i])) << i;
  }
}

// With u = 2^-24: the last step of the polynomial rounds to half an ulp and takes over half of what
// the step before is off, which is u/2 + u/8 + ...; below 1 an ulp is u. A product that is rounded
// by itself adds u/4 + u/16 + ...; the polynomial alone is off by 0.04 u. The argument is off by
// the rounding of log2 e, 0.23 u of x, and, where its product is rounded by itself, by u of x.
TEST_P(VecFloatTest, ErrorOfExpIsThatOfItsArgumentAndOneUlp) {
  for (const float limit : {0.5F, 4.0F, 20.0F, 89.0F}) {
    std::vector<float> x = exponents();
    std::erase_if(x, [&](float value) { return std::fabs(value) > limit; });
    const Worst worst =
        worst_of(probe_.exp, x, [](double value) { return std::exp(value); }, ulp_of);
    EXPECT_LT(worst.error, is_fused() ? 1.0 + 0.23 * limit : 1.25 + 1.23 * limit)
        << "exp(" << worst.x << ") = " << worst.y;
  }
}

TEST_P(VecFloatTest, ExpOfZeroIsExactlyOne) {
  for (const float x : {0.0F, -0.0F, 1e-40F, -1e-40F}) {
    EXPECT_EQ(one(probe_.exp, x), 1.0F);
  }
}

TEST_P(VecFloatTest, ExpBelowTheSmallestNormalNumberIsZero) {
  for (const float x :
       {-87.34F, -88.0F, -100.0F, -1e4F, -1e30F, std::numeric_limits<float>::lowest(), -kInf}) {
    EXPECT_EQ(bits_of(one(probe_.exp, x)), 0U) << x;
  }
}

TEST_P(VecFloatTest, ExpOfNanIsNan) {
  for (const std::uint32_t bits :
       {0x7FC00000U, 0xFFC00000U, 0x7FFFFFFFU, 0xFFFFFFFFU, 0x7F800001U, 0x7FC001FFU}) {
    EXPECT_TRUE(std::isnan(one(probe_.exp, std::bit_cast<float>(bits)))) << std::hex << bits;
  }
}

TEST_P(VecFloatTest, FusedInstructionSetsGiveTheSameBits) {
  if (!is_fused() || !test::is_available(CpuIsa::kAvx512)) {
    GTEST_SKIP() << "needs two instruction sets with a fused operation";
  }
  const VecFloatProbe other = vec_float_probe(CpuIsa::kAvx2);
  const std::vector<float> x = exponents();
  const std::vector<float> a = each(probe_.exp, x);
  const std::vector<float> b = each(other.exp, x);
  const std::vector<float> c = each(probe_.log, a);
  const std::vector<float> d = each(other.log, a);
  for (std::size_t i = 0; i < x.size(); ++i) {
    ASSERT_EQ(bits_of(a[i]), bits_of(b[i])) << x[i];
    ASSERT_EQ(bits_of(c[i]), bits_of(d[i])) << a[i];
  }
}

TEST_P(VecFloatTest, ALaneDoesNotDependOnItsNeighbours) {
  const std::vector<float> mixed = {-1.0F,   kNan, -kInf, -800.0F, 0.5F, -3.25F, 0.0F,  -126.0F,
                                    -127.0F, 1.0F, -2.0F, -40.0F,  kNan, -0.75F, -9.0F, 3.0F};
  const std::vector<float> together = each(probe_.exp, mixed);
  for (std::size_t i = 0; i < mixed.size(); ++i) {
    EXPECT_EQ(bits_of(together[i]), bits_of(one(probe_.exp, mixed[i]))) << mixed[i];
  }
}

TEST_P(VecFloatTest, ErrorOfLogIsBelowTwoUlpsOfOneOrTheResult) {
  std::vector<float> x = evenly(1e-3, 4.0, 200'000);
  const std::vector<float> more = evenly(1.0, 40'000.0, 200'000);
  x.insert(x.end(), more.begin(), more.end());
  for (const float exponent : evenly(-126.0, 127.9, 100'000)) {
    x.push_back(std::exp2(exponent));
  }
  for (int n = -126; n <= 127; ++n) {  // where the exponent changes
    const float edge = std::ldexp(0x1.6a09e6p-1F, n);
    x.insert(x.end(),
             {edge, std::nextafter(edge, kInf), std::nextafter(edge, 0.0F), std::ldexp(1.0F, n)});
  }
  std::erase_if(
      x, [](float value) { return value < std::numeric_limits<float>::min() || value == kInf; });
  const Worst worst = worst_of(
      probe_.log, x, [](double value) { return std::log(value); },
      [](double result) { return ulp_of(std::max(1.0, std::fabs(result))); });
  EXPECT_LT(worst.error, 2.0) << "log(" << worst.x << ") = " << worst.y;
  EXPECT_EQ(one(probe_.log, 1.0F), 0.0F);
  RecordProperty("largest_error_ulps", std::to_string(worst.error));
}

TEST_P(VecFloatTest, EveryBFloat16NumberIsLoadedExactly) {
  for (std::uint32_t first = 0; first < 0x10000U; first += 16) {
    std::array<std::uint16_t, 16> x{};
    Lanes y{};
    for (std::uint32_t i = 0; i < 16; ++i) {
      x[i] = static_cast<std::uint16_t>(first + i);
    }
    probe_.load_bfloat16(x.data(), y.data());
    for (std::uint32_t i = 0; i < 16; ++i) {
      ASSERT_EQ(bits_of(y[i]), (first + i) << 16U);
    }
  }
}

TEST_P(VecFloatTest, BFloat16NumbersAreStoredToTheNearestTiesToEven) {
  std::vector<float> x = {0.0F, -0.0F, kInf, -kInf, 3.4e38F, -3.4e38F, 1e-40F, 1.0F};
  for (std::uint64_t i = 0; i < 100'000; ++i) {  // any bits, and half of them ties
    std::uint32_t bits = philox_block(5, 0, i).word[0];
    bits = i % 2 == 0 ? bits : (bits & 0xFFFF0000U) | 0x8000U;
    if (!std::isnan(std::bit_cast<float>(bits))) {
      x.push_back(std::bit_cast<float>(bits));
    }
  }
  x.resize(x.size() / 16 * 16);
  for (std::size_t first = 0; first < x.size(); first += 16) {
    std::array<std::uint16_t, 16> y{};
    probe_.store_bfloat16(x.data() + first, y.data());
    for (std::size_t i = 0; i < 16; ++i) {
      ASSERT_EQ(std::uint32_t{y[i]} << 16U, bits_of(test::round_to_bfloat16(x[first + i])))
          << x[first + i];
    }
  }
}

TEST_P(VecFloatTest, ANanIsStoredAsABFloat16Nan) {
  for (const std::uint32_t bits :
       {0x7FC00000U, 0xFFC00000U, 0x7FFFFFFFU, 0xFFFFFFFFU, 0x7F800001U, 0xFF800001U}) {
    Lanes x{};
    x.fill(std::bit_cast<float>(bits));
    std::array<std::uint16_t, 16> y{};
    probe_.store_bfloat16(x.data(), y.data());
    for (const std::uint16_t half : y) {
      EXPECT_TRUE(std::isnan(std::bit_cast<float>(std::uint32_t{half} << 16U))) << std::hex << bits;
    }
  }
}

TEST_P(VecFloatTest, TransposingMovesRowsToColumns) {
  const std::ptrdiff_t lanes = probe_.lanes;
  const std::ptrdiff_t src_stride = lanes + 3;
  const std::ptrdiff_t dst_stride = lanes + 5;
  std::vector<float> src(static_cast<std::size_t>(lanes * src_stride));
  std::vector<float> dst(static_cast<std::size_t>(lanes * dst_stride), -1.0F);
  for (std::size_t i = 0; i < src.size(); ++i) {
    src[i] = static_cast<float>(i);
  }
  probe_.transpose_square(src.data(), src_stride, dst.data(), dst_stride);
  for (std::ptrdiff_t i = 0; i < lanes; ++i) {
    for (std::ptrdiff_t j = 0; j < dst_stride; ++j) {
      const float moved = j < lanes ? static_cast<float>(j * src_stride + i) : -1.0F;
      EXPECT_EQ(dst[static_cast<std::size_t>(i * dst_stride + j)], moved) << i << ", " << j;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Isas, VecFloatTest, testing::ValuesIn(test::all_isas()), test::isa_name);

}  // namespace
}  // namespace paperlab::kernels
