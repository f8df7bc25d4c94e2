#include "kernels/common/number.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <limits>

#include "kernels/common/cpu_dtype.h"
#include "kernels/swiglu/swiglu.h"

namespace paperlab::kernels {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr std::uint16_t kInfinityBits = 0x7C00;

float half_of(std::uint32_t bits) { return from_float16({static_cast<std::uint16_t>(bits)}); }

std::uint32_t bits_of(float value) { return to_float16(value).bits; }

// Every number of 16 bits: 5 of the exponent, 10 of the fraction.
TEST(NumberTest, Float16IsBinary16) {
  for (std::uint32_t bits = 0; bits < kInfinityBits; ++bits) {
    const auto exponent = static_cast<int>(bits >> 10U);
    const auto fraction = static_cast<float>(bits & 0x3FFU);
    const float exact =
        exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024.0F + fraction, exponent - 25);
    ASSERT_EQ(half_of(bits), exact) << bits;
    ASSERT_EQ(half_of(bits | 0x8000U), -exact) << bits;
    ASSERT_EQ(bits_of(exact), bits);
    ASSERT_EQ(bits_of(-exact), bits | 0x8000U);
  }
  EXPECT_EQ(half_of(kInfinityBits), kInfinity);
  EXPECT_EQ(half_of(kInfinityBits | 0x8000U), -kInfinity);
  EXPECT_EQ(bits_of(kInfinity), kInfinityBits);
  EXPECT_EQ(bits_of(-kInfinity), kInfinityBits | 0x8000U);
  EXPECT_TRUE(std::isnan(half_of(0x7C01U)));
  EXPECT_TRUE(std::isnan(half_of(bits_of(std::nanf("")))));
}

// Between any two neighbours; beyond the largest number stands 2^16, which is infinity.
TEST(NumberTest, Float16IsTheNearestTiesToEven) {
  for (std::uint32_t bits = 0; bits < kInfinityBits; ++bits) {
    const float above = bits + 1 == kInfinityBits ? 65536.0F : half_of(bits + 1);
    const float middle = (half_of(bits) + above) / 2.0F;  // exact: float32 has 13 bits more
    ASSERT_EQ(bits_of(middle), bits + bits % 2) << bits;
    ASSERT_EQ(bits_of(std::nextafter(middle, 0.0F)), bits) << bits;
    ASSERT_EQ(bits_of(std::nextafter(middle, kInfinity)), bits + 1) << bits;
    ASSERT_EQ(bits_of(-middle), (bits + bits % 2) | 0x8000U) << bits;
  }
  EXPECT_EQ(bits_of(3e38F), kInfinityBits);
  EXPECT_EQ(bits_of(1e-40F), 0U);
}

TEST(NumberTest, EveryDtypeIsReadAndWritten) {
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat64, DType::kFloat16}) {
    double memory[2] = {0.0, 0.0};
    store_number(memory, dtype, 1, -1.5);
    EXPECT_EQ(load_number(memory, dtype, 0), 0.0);
    EXPECT_EQ(load_number(memory, dtype, 1), -1.5);
  }
}

TEST(NumberTest, KernelsOfTheCpuRefuseFloat16) {
  EXPECT_THROW(require_cpu_dtype(DType::kFloat16, "f"), DTypeError);
  require_cpu_dtype(DType::kBFloat16, "f");
  std::uint16_t memory[2] = {0, 0};
  EXPECT_THROW(
      swiglu({DType::kFloat16, 1, 2, {memory, 2}, {memory, 2}}, {memory, 2}, serial_executor()),
      DTypeError);
}

}  // namespace
}  // namespace paperlab::kernels
