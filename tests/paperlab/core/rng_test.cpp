#include "paperlab/core/rng.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <set>
#include <vector>

#include "paperlab/core/parallel.h"

namespace paperlab {
namespace {

using Words = std::array<std::uint32_t, 4>;

Words words(PhiloxBlock block) {
  return {block.word[0], block.word[1], block.word[2], block.word[3]};
}

// The three vectors of philox4x32-10 in Random123's file kat_vectors.
TEST(RngTest, PhiloxGivesTheKnownAnswers) {
  EXPECT_EQ(words(philox4x32({{0, 0, 0, 0}}, 0, 0)),
            (Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  constexpr std::uint32_t kOnes = 0xffffffff;
  EXPECT_EQ(words(philox4x32({{kOnes, kOnes, kOnes, kOnes}}, kOnes, kOnes)),
            (Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(
      words(philox4x32({{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}}, 0xa4093822, 0x299f31d0)),
      (Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(RngTest, ABlockIsTheCounterOfBlockAndStreamUnderTheSeed) {
  EXPECT_EQ(words(philox_block(0x299f31d0a4093822, 0x0370734413198a2e, 0x85a308d3243f6a88)),
            (Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(RngTest, EveryBitOfSeedStreamAndBlockMatters) {
  std::set<Words> seen = {words(philox_block(0, 0, 0))};
  for (unsigned bit = 0; bit < 64; ++bit) {
    const std::uint64_t one = std::uint64_t{1} << bit;
    EXPECT_TRUE(seen.insert(words(philox_block(one, 0, 0))).second) << bit;
    EXPECT_TRUE(seen.insert(words(philox_block(0, one, 0))).second) << bit;
    EXPECT_TRUE(seen.insert(words(philox_block(0, 0, one))).second) << bit;
  }
}

TEST(RngTest, UniformsAreStrictlyBetweenZeroAndOne) {
  EXPECT_EQ(uniform_of_words(0, 0), 0x1p-53);
  EXPECT_EQ(uniform_of_words(0xffffffff, 0xffffffff), 1.0 - 0x1p-53);
  for (std::uint64_t i = 0; i < 10000; ++i) {
    const double x = philox_uniform(1, 2, i);
    EXPECT_GT(x, 0.0);
    EXPECT_LT(x, 1.0);
  }
}

// Bounds are five standard deviations of the estimate.
TEST(RngTest, UniformsHaveTheMomentsOfAUniform) {
  constexpr int kCount = 100000;
  double mean = 0.0;
  double square = 0.0;
  double lag = 0.0;
  double previous = 0.5;
  for (int i = 0; i < kCount; ++i) {
    const double x = philox_uniform(3, 0, static_cast<std::uint64_t>(i)) - 0.5;
    mean += x / kCount;
    square += x * x / kCount;
    lag += x * previous / kCount;
    previous = x;
  }
  EXPECT_NEAR(mean, 0.0, 5.0 * std::sqrt(1.0 / 12.0 / kCount));
  EXPECT_NEAR(square, 1.0 / 12.0, 5.0 * std::sqrt(1.0 / 180.0 / kCount));
  EXPECT_NEAR(lag, 0.0, 5.0 / 12.0 / std::sqrt(kCount));
}

TEST(RngTest, NormalsHaveTheMomentsOfANormal) {
  constexpr int kCount = 200000;
  double moment[5] = {};
  double within_one = 0.0;
  for (const double x : philox_normals(4, 0, kCount)) {
    double power = 1.0;
    for (int k = 0; k < 5; ++k) {
      moment[k] += power / kCount;
      power *= x;
    }
    within_one += std::fabs(x) < 1.0 ? 1.0 / kCount : 0.0;
  }
  const double deviation = 5.0 / std::sqrt(kCount);
  EXPECT_NEAR(moment[1], 0.0, deviation);
  EXPECT_NEAR(moment[2], 1.0, deviation * std::sqrt(2.0));
  EXPECT_NEAR(moment[3], 0.0, deviation * std::sqrt(15.0));
  EXPECT_NEAR(moment[4], 3.0, deviation * std::sqrt(96.0));
  EXPECT_NEAR(within_one, std::erf(std::sqrt(0.5)), deviation * 0.5);
}

TEST(RngTest, AnElementDependsOnSeedStreamAndIndexAlone) {
  constexpr std::uint64_t kCount = 1000;
  const std::vector<double> in_order = philox_normals(9, 5, kCount);
  EXPECT_EQ(philox_normals(9, 5, 10), std::vector<double>(in_order.begin(), in_order.begin() + 10));
  for (std::uint64_t i = kCount; i > 0; --i) {
    EXPECT_EQ(philox_normal(9, 5, i - 1), in_order[i - 1]);
  }
  for (const int num_threads : {1, 2, 3}) {
    std::vector<double> parallel(kCount);
    parallel_for(ThreadPool(num_threads), kCount, [&](std::int64_t i, int) {
      parallel[static_cast<std::size_t>(i)] = philox_normal(9, 5, static_cast<std::uint64_t>(i));
    });
    EXPECT_EQ(parallel, in_order);
  }
}

TEST(RngTest, StreamsDiffer) {
  const std::vector<double> a = philox_normals(9, 0, 1000);
  const std::vector<double> b = philox_normals(9, 1, 1000);
  double correlation = 0.0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    EXPECT_NE(a[i], b[i]);
    correlation += a[i] * b[i] / 1000.0;
  }
  EXPECT_NEAR(correlation, 0.0, 5.0 / std::sqrt(1000.0));
}

TEST(RngTest, TheWholeSeedCounts) {
  EXPECT_NE(philox_normal(1, 0, 0), philox_normal((std::uint64_t{1} << 32U) + 1, 0, 0));
  EXPECT_TRUE(philox_normals(1, 0, 0).empty());
}

}  // namespace
}  // namespace paperlab
