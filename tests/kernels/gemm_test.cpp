#include "kernels/gemm/gemm.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "kernels/common/number.h"
#include "kernels/gemm/tile.h"
#include "paperlab/core/error.h"
#include "paperlab/core/parallel.h"
#include "paperlab/core/rng.h"
#include "tests/support/isa.h"

namespace paperlab::kernels {
namespace {

using Bytes = std::vector<std::byte>;

constexpr DType kDTypes[] = {DType::kFloat32, DType::kBFloat16, DType::kFloat64};

std::int64_t bytes_of(DType dtype) {
  return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2;
}

Bytes nans(DType dtype, std::int64_t count) {  // 0xFF... is NaN in every dtype
  return Bytes(static_cast<std::size_t>(count * bytes_of(dtype)), std::byte{0xFF});
}

// Which operands have their rows side by side in memory instead of their terms.
struct Layout {
  bool is_a_turned;
  bool is_b_turned;
};
constexpr Layout kLayouts[] = {{false, false}, {false, true}, {true, false}, {true, true}};

struct Sizes {
  std::int64_t m;
  std::int64_t n;
  std::int64_t k;
};

// A product with NaN between the lines of its operands and in C.
struct Case {
  Case(DType type, Sizes of, Layout layout, bool has_bias, std::int64_t gap = 0)
      : dtype(type), sizes(of), c_stride(of.n + gap), adds(has_bias) {
    a = matrix(of.m, of.k, layout.is_a_turned, gap, 1);
    b = matrix(of.n, of.k, layout.is_b_turned, gap, 2);
    bias = matrix(1, of.n, false, 0, 3).bytes;
    c = nans(dtype, of.m * c_stride);
  }

  struct Matrix {
    Bytes bytes;
    std::int64_t row_stride;
    std::int64_t k_stride;
    GemmOperand view() const { return {bytes.data(), row_stride, k_stride}; }
  };

  // Numbers in -1..1 with 7 bits: exact in every dtype.
  Matrix matrix(std::int64_t rows, std::int64_t columns, bool is_turned, std::int64_t gap,
                std::uint64_t stream) const {
    Matrix of{{}, is_turned ? 1 : columns + gap, is_turned ? rows + gap : 1};
    of.bytes = nans(dtype, is_turned ? columns * of.k_stride : rows * of.row_stride);
    for (std::int64_t r = 0; r < rows; ++r) {
      for (std::int64_t k = 0; k < columns; ++k) {
        const std::int64_t at = r * columns + k;
        const double x = philox_normal(11, stream, static_cast<std::uint64_t>(at));
        const double clipped = std::fmax(-1.0, std::fmin(1.0, x / 2.0));
        store_number(of.bytes.data(), dtype, r * of.row_stride + k * of.k_stride,
                     std::nearbyint(clipped * 64.0) / 64.0);
      }
    }
    return of;
  }

  Gemm problem() {
    return {dtype,    sizes.m, sizes.n, sizes.k, a.view(), b.view(), adds ? bias.data() : nullptr,
            c.data(), c_stride};
  }

  double at(std::int64_t m, std::int64_t n) const {
    return load_number(c.data(), dtype, m * c_stride + n);
  }

  // The textbook, and the sum of absolute values behind an element.
  struct Exact {
    double value;
    double norm;
  };
  Exact exact(std::int64_t m, std::int64_t n) const {
    Exact sum = {adds ? load_number(bias.data(), dtype, n) : 0.0, 0.0};
    sum.norm = std::fabs(sum.value);
    for (std::int64_t k = 0; k < sizes.k; ++k) {
      const double term = load_number(a.bytes.data(), dtype, m * a.row_stride + k * a.k_stride) *
                          load_number(b.bytes.data(), dtype, n * b.row_stride + k * b.k_stride);
      sum.value += term;
      sum.norm += std::fabs(term);
    }
    return sum;
  }

  DType dtype;
  Sizes sizes;
  std::int64_t c_stride;
  bool adds;
  Matrix a;
  Matrix b;
  Bytes bias;
  Bytes c;
};

// Of a sum of K products and the bias in any order: gamma(K + 2) of the sum of absolute values; a
// bfloat16 result is rounded once more.
double bound(const Case& of, const Case::Exact& exact) {
  const double u = of.dtype == DType::kFloat64 ? 0x1p-53 : 0x1p-24;
  const double steps = u * static_cast<double>(of.sizes.k + 2);
  const double error = steps / (1.0 - steps) * exact.norm;
  return of.dtype == DType::kBFloat16 ? error + 0x1p-8 * (std::fabs(exact.value) + error) : error;
}

// Elements of every `step`-th row and column, and of the last ones.
void expect_exact(const Case& of, std::int64_t step = 1) {
  for (std::int64_t m = 0; m < of.sizes.m; m += m + step < of.sizes.m ? step : 1) {
    for (std::int64_t n = 0; n < of.sizes.n; n += n + step < of.sizes.n ? step : 1) {
      const Case::Exact exact = of.exact(m, n);
      ASSERT_TRUE(std::fabs(of.at(m, n) - exact.value) <= bound(of, exact))
          << "dtype " << static_cast<int>(of.dtype) << ", M " << of.sizes.m << ", N " << of.sizes.n
          << ", K " << of.sizes.k << ", strides " << of.a.row_stride << ", " << of.b.row_stride
          << ": C[" << m << ", " << n << "] is " << of.at(m, n) << ", exact " << exact.value;
    }
  }
}

class GemmTest : public testing::TestWithParam<CpuIsa> {
 protected:
  void SetUp() override {
    if (!test::is_available(GetParam())) {
      GTEST_SKIP() << test::missing(GetParam());
    }
  }
};

TEST_P(GemmTest, EveryLayoutIsWithinTheBound) {
  const test::ScopedIsa isa(GetParam());
  for (const DType dtype : kDTypes) {
    for (const Sizes sizes : {Sizes{1, 1, 1},
                              {1, 37, 3},
                              {2, 5, 17},
                              {3, 33, 64},
                              {4, 16, 31},
                              {5, 7, 97},
                              {7, 131, 16},
                              {13, 2, 333},
                              {15, 32, 15},
                              {16, 31, 32},
                              {17, 1, 65},
                              {33, 64, 40},
                              {29, 67, 1},
                              {43, 17, 321},
                              {61, 47, 53},
                              {130, 129, 29},
                              {37, 3, 700}}) {
      for (const Layout& layout : kLayouts) {
        Case of(dtype, sizes, layout, sizes.m % 2 == 1);
        gemm(of.problem(), *default_executor());
        expect_exact(of);
      }
    }
  }
}

TEST_P(GemmTest, EveryHeightOfATileIsRight) {
  const test::ScopedIsa isa(GetParam());
  for (const DType dtype : kDTypes) {
    for (std::int64_t m = 1; m <= kFewRows + 17; ++m) {
      for (const Layout& layout : {kLayouts[0], kLayouts[3]}) {
        Case of(dtype, {m, 19, 21}, layout, true);
        gemm(of.problem(), serial_executor());
        expect_exact(of);
      }
    }
  }
}

TEST_P(GemmTest, WhatLiesBetweenTheLinesIsNeitherReadNorWritten) {
  const test::ScopedIsa isa(GetParam());
  for (const DType dtype : kDTypes) {
    for (const Sizes sizes : {Sizes{3, 37, 45}, {40, 35, 50}}) {
      for (const Layout& layout : kLayouts) {
        Case of(dtype, sizes, layout, true, /*gap=*/5);
        gemm(of.problem(), *default_executor());
        expect_exact(of);
        for (std::int64_t i = 0; i < sizes.m * of.c_stride; ++i) {
          EXPECT_EQ(std::isnan(load_number(of.c.data(), dtype, i)), i % of.c_stride >= sizes.n);
        }
      }
    }
  }
}

// Rows of few terms, as far apart as whole vectors, at whole cache lines.
TEST_P(GemmTest, FewAlignedRowsAreNotReadBeyondTheirTerms) {
  const test::ScopedIsa isa(GetParam());
  constexpr std::int64_t kTerms = 15;
  Case of(DType::kFloat32, {2, 37, kTerms}, kLayouts[0], false, /*gap=*/32 - kTerms);
  alignas(64) float a[2 * 32];
  std::memcpy(a, of.a.bytes.data(), sizeof(a));
  Gemm problem = of.problem();
  problem.a.data = a;
  gemm(problem, serial_executor());
  expect_exact(of);
}

TEST_P(GemmTest, MoreThanASlabIsWithinTheBound) {
  const test::ScopedIsa isa(GetParam());
  for (const DType dtype : kDTypes) {
    for (const Sizes sizes : {Sizes{2 * kSlabRows + 3, 20, 5},
                              {38, 2 * kSlabRows + 3, 5},
                              {38, 20, 2 * kSlabTerms + 3},
                              {3, 9, 2 * kSlabTerms + 3}}) {
      for (const Layout& layout : {kLayouts[0], kLayouts[3]}) {
        Case of(dtype, sizes, layout, true);
        gemm(of.problem(), *default_executor());
        expect_exact(of, 13);
      }
    }
  }
}

TEST_P(GemmTest, WithoutTermsCIsTheBias) {
  const test::ScopedIsa isa(GetParam());
  for (const DType dtype : kDTypes) {
    for (const bool adds : {false, true}) {
      for (const Sizes sizes : {Sizes{3, 5, 0}, {20, 40, 0}, {0, 5, 4}, {5, 0, 4}, {0, 0, 0}}) {
        Case of(dtype, sizes, kLayouts[0], adds);
        gemm(of.problem(), serial_executor());
        expect_exact(of);
      }
    }
  }
}

TEST_P(GemmTest, BitsDoNotDependOnTheExecutor) {
  const test::ScopedIsa isa(GetParam());
  const ThreadPool pool(3);
  for (const DType dtype : kDTypes) {
    for (const Sizes sizes : {Sizes{5, 301, 400}, {90, 301, 700}, {300, 40, 350}}) {
      Case one(dtype, sizes, kLayouts[0], true);
      Case three = one;
      gemm(one.problem(), serial_executor());
      gemm(three.problem(), pool);
      EXPECT_EQ(one.c, three.c);
    }
  }
}

// Rows of `few` are the first of those of `many`.
void expect_same_rows(DType dtype, Sizes few, Sizes many) {
  Case small(dtype, few, kLayouts[0], true);
  Case large(dtype, many, kLayouts[0], true);
  large.b = small.b;
  large.bias = small.bias;
  gemm(small.problem(), *default_executor());
  gemm(large.problem(), *default_executor());
  for (std::int64_t m = 0; m < few.m; ++m) {
    for (std::int64_t n = 0; n < few.n; ++n) {
      EXPECT_EQ(small.at(m, n), large.at(m, n));
    }
  }
}

TEST_P(GemmTest, ARowsBitsDoNotDependOnTheOtherRows) {
  const test::ScopedIsa isa(GetParam());
  for (const DType dtype : kDTypes) {
    for (std::int64_t m = 1; m < kFewRows; m += 3) {
      expect_same_rows(dtype, {m, 23, 345}, {kFewRows, 23, 345});
    }
    for (std::int64_t m = kFewRows + 1; m < kFewRows + 20; m += 3) {
      expect_same_rows(dtype, {m, 23, 345}, {301, 23, 345});
    }
  }
}

TEST_P(GemmTest, ANanStaysInItsRowAndColumn) {
  const test::ScopedIsa isa(GetParam());
  for (const DType dtype : kDTypes) {
    for (const std::int64_t m : {4, 50}) {
      Case of(dtype, {m, 37, 41}, kLayouts[0], true);
      const double nan = std::numeric_limits<double>::quiet_NaN();
      store_number(of.a.bytes.data(), dtype, 2 * of.a.row_stride + 40, nan);
      store_number(of.b.bytes.data(), dtype, 35 * of.b.row_stride, nan);
      gemm(of.problem(), serial_executor());
      for (std::int64_t row = 0; row < m; ++row) {
        for (std::int64_t n = 0; n < 37; ++n) {
          EXPECT_EQ(std::isnan(of.at(row, n)), row == 2 || n == 35);
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Isas, GemmTest, testing::ValuesIn(test::all_isas()), test::isa_name);

TEST(GemmReferenceTest, IsTheTextbook) {
  for (const Layout& layout : kLayouts) {
    Case of(DType::kFloat64, {4, 5, 6}, layout, true, 1);
    gemm_reference(of.problem());
    expect_exact(of);
  }
}

TEST(GemmArgumentsTest, WrongSizesAndStridesAreRefused) {
  Case of(DType::kFloat32, {2, 3, 4}, kLayouts[0], false);
  Gemm negative = of.problem();
  negative.k = -1;
  EXPECT_THROW(gemm(negative, serial_executor()), ShapeError);
  Gemm apart = of.problem();
  apart.b.k_stride = 2;
  EXPECT_THROW(gemm(apart, serial_executor()), ValueError);
}

TEST(GemmTileTest, PanelsHoldEveryRowAndTermOnceInOrder) {
  for (std::int64_t size = 1; size <= 5000; size += 13) {
    const GemmTiles tiles = gemm_tiles(size, size, size, 14, 32);
    std::int64_t next = 0;
    for (std::int64_t panel = 0; panel < tiles.row_panels; ++panel) {
      EXPECT_EQ(tiles.rows(panel).begin, next);
      EXPECT_GE(tiles.rows(panel).size(), size < 14 ? size : 7);
      EXPECT_LE(tiles.rows(panel).size(), 14);
      next = tiles.rows(panel).end;
    }
    EXPECT_EQ(next, size);
    next = 0;
    for (std::int64_t block = 0; block < tiles.k_blocks; ++block) {
      EXPECT_EQ(tiles.terms(block).begin, next);
      EXPECT_GT(tiles.terms(block).size(), 0);
      EXPECT_LE(tiles.terms(block).size(), kMostTerms);
      next = tiles.terms(block).end;
    }
    EXPECT_EQ(next, size);
  }
}

TEST(GemmTileTest, ASlabIsBoundedAndNeverEmpty) {
  for (const std::int64_t m : {1, 300, 100000}) {
    for (const std::int64_t k : {1, 300, 321, 2000, 100000}) {
      const GemmTiles tiles = gemm_tiles(m, 50000, k, 14, 32);
      EXPECT_GE(tiles.slab_row_panels, 1);
      EXPECT_GE(tiles.slab_column_panels, 1);
      EXPECT_GE(tiles.slab_k_blocks, 1);
      const std::int64_t terms = tiles.slab_k_blocks * tiles.k_block;
      EXPECT_LE(terms * tiles.slab_row_panels * 14, kSlabElements);
      EXPECT_LE(terms * tiles.slab_column_panels * 32, kSlabElements);
      EXPECT_LE(tiles.slab_row_panels * 14, kSlabRows);
    }
  }
}

TEST(GemmTileTest, TasksAreEnoughAndNotEmpty) {
  for (std::int64_t rows = 1; rows <= 150; ++rows) {
    for (std::int64_t columns = 1; columns <= 70; columns += 3) {
      const GemmGrid grid = task_grid({{0, rows}, {0, columns}, {0, 1}});
      EXPECT_GE(grid.num_tasks(), least(kLeastTasks, columns));
      EXPECT_LE(grid.row_parts, rows);
      EXPECT_LE(grid.column_parts, columns);
    }
  }
}

}  // namespace
}  // namespace paperlab::kernels
