#include "paperlab/data/permutation.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <vector>

#include "paperlab/core/error.h"
#include "tests/experiments/scratch.h"

namespace paperlab::data {
namespace {

std::vector<std::uint64_t> whole(std::uint64_t seed, std::uint64_t stream, std::uint64_t n) {
  std::vector<std::uint64_t> values(n);
  for (std::uint64_t i = 0; i < n; ++i) {
    values[i] = permuted(seed, stream, n, i);
  }
  return values;
}

// Each of 0..n-1 once.
bool is_permutation_of_all(const std::vector<std::uint64_t>& values) {
  std::vector<bool> seen(values.size(), false);
  for (const std::uint64_t value : values) {
    if (value >= values.size() || seen[value]) {
      return false;
    }
    seen[value] = true;
  }
  return true;
}

TEST(PermutationTest, EverySizeIsABijection) {
  for (std::uint64_t n = 1; n <= 1000; ++n) {
    ASSERT_TRUE(is_permutation_of_all(whole(7, n, n))) << n;
  }
  for (const std::uint64_t n : {65535U, 65536U, 65537U, 100003U}) {
    EXPECT_TRUE(is_permutation_of_all(whole(1, 2, n))) << n;
  }
}

// Above 2^32 a sample of the elements: all below n, none twice.
TEST(PermutationTest, HugeSizesStayInRangeAndDoNotRepeat) {
  for (const std::uint64_t n :
       {(std::uint64_t{1} << 33) + 1, (std::uint64_t{1} << 62) - 5, std::uint64_t{1} << 62}) {
    std::vector<std::uint64_t> values;
    for (std::uint64_t i = 0; i < 2000; ++i) {
      values.push_back(permuted(3, 4, n, i));
      ASSERT_LT(values.back(), n);
    }
    std::sort(values.begin(), values.end());
    EXPECT_EQ(std::adjacent_find(values.begin(), values.end()), values.end());
    EXPECT_GT(values.back(), n - n / 100);  // spread: missed with probability 0.99^2000
  }
}

TEST(PermutationTest, SeedsAndStreamsNameDifferentOnes) {
  const std::vector<std::uint64_t> first = whole(1, 1, 500);
  EXPECT_EQ(whole(1, 1, 500), first);
  EXPECT_NE(whole(2, 1, 500), first);
  EXPECT_NE(whole(1, 2, 500), first);
  std::vector<std::uint64_t> ordered(500);
  std::iota(ordered.begin(), ordered.end(), 0U);
  EXPECT_NE(first, ordered);
}

// Over many streams, the places of elements 0 and 1 are a uniform pair: chi-square of n (n - 1)
// cells with 200 expected counts each. The bound is the mean plus six standard deviations.
TEST(PermutationTest, PairsAreUniformOverStreams) {
  for (const std::uint64_t n : {2U, 3U, 5U, 8U, 11U, 16U, 32U}) {
    const std::uint64_t cells = n * (n - 1);
    std::vector<double> counts(n * n, 0.0);
    for (std::uint64_t stream = 0; stream < 200 * cells; ++stream) {
      counts[permuted(11, stream, n, 0) * n + permuted(11, stream, n, 1)] += 1;
    }
    double chi_square = 0;
    for (std::uint64_t cell = 0; cell < n * n; ++cell) {
      if (cell / n == cell % n) {
        ASSERT_EQ(counts[cell], 0);
      } else {
        chi_square += (counts[cell] - 200) * (counts[cell] - 200) / 200;
      }
    }
    const auto freedom = static_cast<double>(cells - 1);
    EXPECT_LT(chi_square, freedom + 6 * std::sqrt(2 * freedom)) << n;
  }
}

// Neighbours do not stay neighbours: the mean of |p(i) - p(i+1)| is near n/3, as of random pairs.
TEST(PermutationTest, NeighboursAreTornApart) {
  constexpr std::uint64_t kSize = 30000;
  const std::vector<std::uint64_t> values = whole(5, 6, kSize);
  double sum = 0;
  for (std::size_t i = 1; i < values.size(); ++i) {
    sum += std::abs(static_cast<double>(values[i]) - static_cast<double>(values[i - 1]));
  }
  const double mean = sum / (kSize - 1) / kSize;
  EXPECT_NEAR(mean, 1.0 / 3, 6 * std::sqrt(1.0 / 18 / kSize));  // 1/18: variance of |u - v|
}

TEST(PermutationTest, BadSizesAreRefused) {
  PAPERLAB_EXPECT_THROW(permuted(0, 0, 0, 0), ValueError, "n in 1..2^62, got 0");
  PAPERLAB_EXPECT_THROW(permuted(0, 0, (std::uint64_t{1} << 62) + 1, 0), ValueError, "2^62");
  PAPERLAB_EXPECT_THROW(permuted(0, 0, 5, 5), ValueError, "i below n = 5, got 5");
}

}  // namespace
}  // namespace paperlab::data
