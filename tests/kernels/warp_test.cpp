// What a warp does together: the layouts of fragments, swizzled tiles, and the host's forms of the
// instructions.
#include "kernels/common/cuda/warp.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <set>
#include <utility>
#include <vector>

#include "kernels/attention/block_tiles.h"

namespace paperlab::kernels {
namespace {

using Place = std::pair<int, int>;

template <class F>
std::set<Place> places(int per_lane, F place) {
  std::set<Place> all;
  for (int lane = 0; lane < kWarp; ++lane) {
    for (int i = 0; i < per_lane; ++i) {
      const MatrixPlace at = place(lane, i);
      EXPECT_TRUE(all.insert({at.row, at.column}).second);
    }
  }
  return all;
}

std::set<Place> matrix(int rows, int columns) {
  std::set<Place> all;
  for (int row = 0; row < rows; ++row) {
    for (int column = 0; column < columns; ++column) {
      all.insert({row, column});
    }
  }
  return all;
}

TEST(FragmentTest, EveryElementHasOneLane) {
  EXPECT_EQ(places(8, place_in_a), matrix(16, 16));
  EXPECT_EQ(places(4, place_in_b), matrix(16, 8));
  EXPECT_EQ(places(4, place_in_c), matrix(16, 8));
  for (const bool is_transposed : {false, true}) {
    EXPECT_EQ(places(2, [&](int lane, int i) { return place_in_matrix(lane, i, is_transposed); }),
              matrix(8, 8));
  }
}

// Some entries of the manual's figures.
TEST(FragmentTest, IsTheDocumentedLayout) {
  EXPECT_EQ(place_in_a(0, 0), (MatrixPlace{0, 0}));
  EXPECT_EQ(place_in_a(5, 1), (MatrixPlace{1, 3}));
  EXPECT_EQ(place_in_a(5, 2), (MatrixPlace{9, 2}));
  EXPECT_EQ(place_in_a(5, 4), (MatrixPlace{1, 10}));
  EXPECT_EQ(place_in_a(31, 7), (MatrixPlace{15, 15}));
  EXPECT_EQ(place_in_b(5, 1), (MatrixPlace{3, 1}));
  EXPECT_EQ(place_in_b(31, 2), (MatrixPlace{14, 7}));
  EXPECT_EQ(place_in_c(5, 1), (MatrixPlace{1, 3}));
  EXPECT_EQ(place_in_c(5, 2), (MatrixPlace{9, 2}));
}

// Words of a product are words of a left matrix: columns 0..7 and 8..15 of two products.
TEST(FragmentTest, AProductIsALeftMatrix) {
  for (int lane = 0; lane < kWarp; ++lane) {
    for (int i = 0; i < 8; ++i) {
      const int word = i / 2;
      const MatrixPlace of_product = place_in_c(lane, word % 2 * 2 + i % 2);
      const MatrixPlace expected{of_product.row, of_product.column + word / 2 * 8};
      EXPECT_EQ(place_in_a(lane, i), expected);
    }
  }
}

// ---------------------------------------------------------------------------------------------

// Bank of the first of a chunk's four words.
int bank(int row, int chunk, int width) { return chunk_at(row, chunk, width) / 2 % 32; }

TEST(TileTest, ChunksHavePlacesOfTheirOwn) {
  for (const int width : {64, 128, 256}) {
    std::set<int> all;
    for (int row = 0; row < 64; ++row) {
      for (int chunk = 0; chunk < width / kChunk; ++chunk) {
        const int at = chunk_at(row, chunk, width);
        EXPECT_EQ(at % kChunk, 0);
        EXPECT_EQ(at / width, row);
        EXPECT_TRUE(all.insert(at).second);
      }
    }
  }
}

// The eight rows of a matrix, and eight neighbouring chunks of a row, fill all 32 banks.
TEST(TileTest, MatricesAndRowsMeetNoBankTwice) {
  for (const int width : {64, 128, 256}) {
    for (int chunk = 0; chunk < width / kChunk; ++chunk) {
      for (int row = 0; row < 64; row += 8) {
        std::set<int> banks;
        for (int i = 0; i < 8; ++i) {
          banks.insert(bank(row + i, chunk, width));
        }
        EXPECT_EQ(banks.size(), 8U);
      }
    }
    for (int row = 0; row < 64; ++row) {
      for (int chunk = 0; chunk < width / kChunk; chunk += 8) {
        std::set<int> banks;
        for (int i = 0; i < 8; ++i) {
          banks.insert(bank(row, chunk + i, width));
        }
        EXPECT_EQ(banks.size(), 8U);
      }
    }
  }
}

// ---------------------------------------------------------------------------------------------

// Small whole numbers, different everywhere: products and their sums are exact.
template <class E>
std::vector<Bits> numbers(int rows, int columns, int seed) {
  std::vector<Bits> tile(static_cast<std::size_t>(rows * columns));
  for (int row = 0; row < rows; ++row) {
    for (int column = 0; column < columns; ++column) {
      const int number = (row * 7 + column * 5 + row * column * 3 + seed) % 17 - 8;
      const std::int64_t at = chunk_at(row, column / kChunk, columns) + column % kChunk;
      tile[static_cast<std::size_t>(at)] = to_element<E>(static_cast<float>(number)).bits;
    }
  }
  return tile;
}

template <class E>
float number_at(const std::vector<Bits>& tile, int row, int column, int width) {
  const std::int64_t at = chunk_at(row, column / kChunk, width) + column % kChunk;
  return to_number(E{tile[static_cast<std::size_t>(at)]});
}

template <class E>
class ProductTest : public testing::Test {};
using Halves = testing::Types<BFloat16, Float16>;
TYPED_TEST_SUITE(ProductTest, Halves);

TYPED_TEST(ProductTest, OfRowsWithRowsIsExact) {
  constexpr int kWidth = 64;
  const std::vector<Bits> a = numbers<TypeParam>(64, kWidth, 1);
  const std::vector<Bits> b = numbers<TypeParam>(64, kWidth, 4);
  const HostLanes warp;
  Sums<HostLanes> sums[2][4];
  clear(warp, sums);
  multiply_rows<TypeParam, kWidth>(warp, a.data(), 16, b.data(), 8, sums);
  for (int lane = 0; lane < kWarp; ++lane) {
    for (int i = 0; i < 4; ++i) {
      const MatrixPlace at = place_in_c(lane, i);
      for (int m = 0; m < 2; ++m) {
        for (int n = 0; n < 4; ++n) {
          float expected = 0.0F;
          for (int k = 0; k < kWidth; ++k) {
            expected += number_at<TypeParam>(a, 16 + 16 * m + at.row, k, kWidth) *
                        number_at<TypeParam>(b, 8 + 8 * n + at.column, k, kWidth);
          }
          EXPECT_EQ(sums[m][n].of(lane)[i], expected);
        }
      }
    }
  }
}

// (A B^T) C: a product that becomes a left matrix.
TYPED_TEST(ProductTest, OfAProductWithColumnsIsExact) {
  constexpr int kWidth = 64;
  const std::vector<Bits> c = numbers<TypeParam>(64, kWidth, 2);
  const HostLanes warp;
  Sums<HostLanes> weights[1][4];
  for (int lane = 0; lane < kWarp; ++lane) {
    for (int n = 0; n < 4; ++n) {
      for (int i = 0; i < 4; ++i) {
        const MatrixPlace at = place_in_c(lane, i);
        weights[0][n].of(lane)[i] = static_cast<float>(at.row % 5 - 2 * (8 * n + at.column) % 7);
      }
    }
  }
  Sums<HostLanes> sums[1][kWidth / 8];
  clear(warp, sums);
  multiply_columns<TypeParam, kWidth>(warp, weights, c.data(), 16, sums);
  for (int lane = 0; lane < kWarp; ++lane) {
    for (int i = 0; i < 4; ++i) {
      const MatrixPlace at = place_in_c(lane, i);
      for (int n = 0; n < kWidth / 8; ++n) {
        float expected = 0.0F;
        for (int k = 0; k < 32; ++k) {
          expected += static_cast<float>(at.row % 5 - 2 * k % 7) *
                      number_at<TypeParam>(c, 16 + k, 8 * n + at.column, kWidth);
        }
        EXPECT_EQ(sums[0][n].of(lane)[i], expected);
      }
    }
  }
}

TYPED_TEST(ProductTest, AWordHoldsTheFirstElementLow) {
  const std::uint32_t word = to_word<TypeParam>(1.5F, -2.0F);
  EXPECT_EQ(to_number(TypeParam{half_of(&word, 0)}), 1.5F);
  EXPECT_EQ(to_number(TypeParam{half_of(&word, 1)}), -2.0F);
}

TEST(WarpTest, AQuadSharesItsLargestAndItsSum) {
  const HostLanes warp;
  AllValues<float, 2> x;
  for (int lane = 0; lane < kWarp; ++lane) {
    x.of(lane)[0] = static_cast<float>(lane * 5 % 13);
    x.of(lane)[1] = static_cast<float>(lane);
  }
  AllValues<float, 2> sums = x;
  warp.over_quad(sums, [](float a, float b) { return a + b; });
  warp.over_quad(x, [](float a, float b) { return a > b ? a : b; });
  for (int lane = 0; lane < kWarp; ++lane) {
    const int first = lane / 4 * 4;
    float largest = 0.0F;
    for (int i = first; i < first + 4; ++i) {
      largest = std::max(largest, static_cast<float>(i * 5 % 13));
    }
    EXPECT_EQ(x.of(lane)[0], largest);
    EXPECT_EQ(sums.of(lane)[1], static_cast<float>(4 * first + 6));
  }
}

TEST(WarpTest, ACopyArrivesWhereItIsWaitedFor) {
  HostLanes warp;
  const std::vector<Bits> from = {1, 2, 3, 4, 5, 6, 7, 8};
  std::vector<Bits> to(16, 9);
  warp.copy(to.data(), 8, from.data(), true);
  EXPECT_EQ(to[8], 9);
  warp.wait();
  EXPECT_EQ(to[7], 9);
  EXPECT_TRUE(std::equal(from.begin(), from.end(), to.begin() + 8));
  warp.copy(to.data(), 0, from.data(), false);
  warp.wait();
  EXPECT_EQ(std::count(to.begin(), to.end(), Bits{0}), 8);
}

}  // namespace
}  // namespace paperlab::kernels
