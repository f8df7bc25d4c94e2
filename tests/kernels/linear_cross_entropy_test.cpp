#include "kernels/linear_cross_entropy/linear_cross_entropy.h"
#include "kernels/gemm/gemm.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/common/number.h"
#include "kernels/linear_cross_entropy/tile.h"
#include "paperlab/core/error.h"
#include "paperlab/core/parallel.h"
#include "paperlab/core/rng.h"
#include "tests/kernels/linear_cross_entropy_cases.h"
#include "tests/support/isa.h"

namespace paperlab::kernels::cross_entropy_test {
namespace {

class LinearCrossEntropyTest : public testing::TestWithParam<CpuIsa> {
 protected:
  void SetUp() override {
    if (!test::is_available(GetParam())) {
      GTEST_SKIP() << test::missing(GetParam());
    }
  }
};

TEST_P(LinearCrossEntropyTest, EveryShapeIsWithinTheBound) {
  const test::ScopedIsa isa(GetParam());
  for (const DType dtype : kDTypes) {
    int i = 0;
    for (const Sizes sizes : {Sizes{1, 1, 1},
                              {1, 3, 2},
                              {2, 5, 15},
                              {3, 1, 16},
                              {5, 7, 17},
                              {7, 16, 63},
                              {4, 33, 64},
                              {13, 9, 65},
                              {33, 17, 131},
                              {65, 40, 257},
                              {3, 4, 2100}}) {
      for (const Reduction reduction : kReductions) {
        ++i;
        Options options;
        options.has_bias = i % 2 == 0;
        options.reduction = reduction;
        options.z_loss = i % 5 < 2 ? 0.0 : 0.05;
        options.is_turned = dtype != DType::kBFloat16 && i % 4 == 0;
        options.gap = i % 7;
        options.ignore_index = i % 3 == 0 ? sizes.v - 1 : -100;
        Case of(dtype, sizes, options);
        of.run(*default_executor());
        if (sizes.v > 1 || options.ignore_index < 0) {  // else no row counts
          expect_close(of);
        }
      }
    }
  }
}

TEST_P(LinearCrossEntropyTest, SeveralChunksOfRowsAndColumnsAreWithinTheBound) {
  const test::ScopedIsa isa(GetParam());
  for (const DType dtype : kDTypes) {
    const Sizes sizes = {kChunkRows + 21, 2, kLeastChunkColumns + 40};
    const ChunkShape shape = chunk_shape(sizes.n, sizes.d, sizes.v);
    ASSERT_LT(shape.rows, sizes.n);
    ASSERT_LT(shape.columns, sizes.v);
    Case of(dtype, sizes, {});
    of.run(*default_executor());
    expect_close(of);
  }
}

TEST_P(LinearCrossEntropyTest, LogitsOfAnySizeDoNotOverflow) {
  const test::ScopedIsa isa(GetParam());
  for (const DType dtype : kDTypes) {
    Options options;
    options.scale = 16384.0;
    Case of(dtype, {9, 8, 70}, options);
    of.run(serial_executor());
    expect_close(of);
  }
}

TEST_P(LinearCrossEntropyTest, ColumnsWithoutProbabilityAreLikeAbsentOnes) {
  const test::ScopedIsa isa(GetParam());
  for (const DType dtype : kDTypes) {
    const Sizes sizes = {kChunkRows + 21, 1, kLeastChunkColumns + 40};  // 2 chunks of columns
    Case of(dtype, sizes, {});
    const std::int64_t columns = chunk_shape(sizes.n, sizes.d, sizes.v).columns;
    for (std::int64_t v = 0; v < columns; ++v) {
      store_number(of.bias.data(), dtype, v, -kInfinity);
    }
    for (std::int64_t& target : of.target) {
      target = target < 0 ? target : columns + target % 3;
    }
    of.run(*default_executor());
    for (std::int64_t v = 0; v < sizes.v; ++v) {
      const double grad = load_number(of.grad_bias.data(), dtype, v);
      EXPECT_TRUE(v < columns ? grad == 0.0 : std::isfinite(grad)) << v << ": " << grad;
    }
    EXPECT_TRUE(std::isfinite(of.statistic(of.loss, 0)));
  }
}

TEST_P(LinearCrossEntropyTest, ANanStaysInItsRow) {
  const test::ScopedIsa isa(GetParam());
  for (const DType dtype : kDTypes) {
    Options options;
    options.reduction = Reduction::kNone;
    Case of(dtype, {40, 6, 70}, options);
    store_number(of.x.data(), dtype, 30, std::numeric_limits<double>::quiet_NaN());
    of.run(serial_executor());
    for (std::int64_t row = 0; row < 40; ++row) {
      EXPECT_EQ(std::isnan(of.statistic(of.loss, row)), row == 5);
      EXPECT_EQ(std::isnan(of.statistic(of.lse, row)), row == 5);
      EXPECT_EQ(std::isnan(load_number(of.grad_x.data(), dtype, row * 6)), row == 5);
    }
  }
}

TEST_P(LinearCrossEntropyTest, WithoutRowsThatCountAMeanIsNanAndGradientsAreZero) {
  const test::ScopedIsa isa(GetParam());
  for (const DType dtype : kDTypes) {
    for (const Reduction reduction : {Reduction::kMean, Reduction::kSum}) {
      for (const std::int64_t n : {0, 5}) {
        Options options;
        options.reduction = reduction;
        options.z_loss = 0.1;
        Case of(dtype, {n, 3, 20}, options);
        std::fill(of.target.begin(), of.target.end(), options.ignore_index);
        of.run(serial_executor());
        const double loss = of.statistic(of.loss, 0);
        EXPECT_TRUE(reduction == Reduction::kMean ? std::isnan(loss) : loss == 0.0) << loss;
        for (std::int64_t i = 0; i < 60; ++i) {
          EXPECT_EQ(load_number(of.grad_weight.data(), dtype, i), 0.0);
          EXPECT_EQ(load_number(of.grad_bias.data(), dtype, i % 20), 0.0);
          EXPECT_TRUE(i >= n * 3 || load_number(of.grad_x.data(), dtype, i) == 0.0);
        }
      }
    }
  }
}

TEST_P(LinearCrossEntropyTest, OnlyWantedGradientsAreWritten) {
  const test::ScopedIsa isa(GetParam());
  for (const DType dtype : kDTypes) {
    Case all(dtype, {20, 5, 40}, {});
    all.run(serial_executor());
    for (int wanted = 0; wanted < 8; ++wanted) {
      Case of(dtype, {20, 5, 40}, {});
      of.lse = all.lse;
      LinearCrossEntropyGradients gradients = of.gradients();
      gradients.grad_x = (wanted & 1) != 0 ? gradients.grad_x : nullptr;
      gradients.grad_weight = (wanted & 2) != 0 ? gradients.grad_weight : nullptr;
      gradients.grad_bias = (wanted & 4) != 0 ? gradients.grad_bias : nullptr;
      linear_cross_entropy_backward(of.problem(), gradients, gemm, serial_executor());
      EXPECT_EQ(of.grad_x, (wanted & 1) != 0 ? all.grad_x : nans(100));
      EXPECT_EQ(of.grad_weight, (wanted & 2) != 0 ? all.grad_weight : nans(200));
      EXPECT_EQ(of.grad_bias, (wanted & 4) != 0 ? all.grad_bias : nans(40));
    }
  }
}

TEST_P(LinearCrossEntropyTest, BitsDoNotDependOnTheExecutor) {
  const test::ScopedIsa isa(GetParam());
  const ThreadPool pool(3);
  for (const DType dtype : kDTypes) {
    for (const Sizes sizes : {Sizes{130, 40, 700}, {kChunkRows + 21, 3, kLeastChunkColumns + 40}}) {
      Case one(dtype, sizes, {});
      Case three = one;
      one.run(serial_executor());
      three.run(pool);
      EXPECT_EQ(one.loss, three.loss);
      EXPECT_EQ(one.lse, three.lse);
      EXPECT_EQ(one.grad_x, three.grad_x);
      EXPECT_EQ(one.grad_weight, three.grad_weight);
      EXPECT_EQ(one.grad_bias, three.grad_bias);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Isas, LinearCrossEntropyTest, testing::ValuesIn(test::all_isas()),
                         test::isa_name);

TEST(LinearCrossEntropyReferenceTest, IsTheTextbook) {
  for (const DType dtype : kDTypes) {
    for (const Reduction reduction : kReductions) {
      Options options;
      options.reduction = reduction;
      options.z_loss = 0.1;
      options.gap = 2;
      Case of(dtype, {7, 5, 19}, options);
      linear_cross_entropy_reference(of.problem(), of.result());
      linear_cross_entropy_backward_reference(of.problem(), of.gradients());
      expect_close(of);
    }
  }
}

TEST(LinearCrossEntropyArgumentsTest, WrongSizesStridesAndTargetsAreRefused) {
  Case of(DType::kFloat32, {4, 3, 5}, {});
  const auto forward = [&](const LinearCrossEntropy& problem) {
    linear_cross_entropy(problem, of.result(), gemm, serial_executor());
  };
  LinearCrossEntropy problem = of.problem();
  problem.vocab_size = 0;
  EXPECT_THROW(forward(problem), ShapeError);
  problem = of.problem();
  problem.num_rows = -1;
  EXPECT_THROW(forward(problem), ShapeError);
  problem = of.problem();
  problem.weight.k_stride = 2;
  EXPECT_THROW(forward(problem), ValueError);
  for (const std::int64_t target : {std::int64_t{-1}, std::int64_t{5}, std::int64_t{1} << 40}) {
    of.target[2] = target;
    EXPECT_THROW(forward(of.problem()), ValueError);
    EXPECT_THROW(
        linear_cross_entropy_backward(of.problem(), of.gradients(), gemm, serial_executor()),
        ValueError);
  }
  EXPECT_EQ(of.loss, nans(5));
  EXPECT_EQ(of.grad_x, nans(12));
}

TEST(LinearCrossEntropyTileTest, ChunksAreBoundedAndHoldEveryRowAndColumnOnce) {
  for (const std::int64_t n : {1, 7, 500, 2048, 4096, 5000, 100000}) {
    for (const std::int64_t d : {0, 1, 576, 8192}) {
      for (const std::int64_t v : {1, 256, 1025, 32000, 49152, 1000003}) {
        const ChunkShape shape = chunk_shape(n, d, v);
        EXPECT_GE(shape.rows, 1);
        EXPECT_GE(shape.columns, 1);
        EXPECT_LE(shape.rows, kChunkRows);
        EXPECT_LE(shape.rows * shape.columns, kChunkElements);
        if (shape.columns > kLeastChunkColumns) {
          EXPECT_LE(shape.columns * d, kChunkElements);
          EXPECT_EQ(shape.rows, n);
        }
        const std::int64_t last = num_ranges(v, shape.columns) - 1;
        EXPECT_EQ(range_at(v, shape.columns, last).end, v);
        EXPECT_GE(range_at(v, shape.columns, last).size(), 1);
      }
    }
  }
  EXPECT_EQ(chunk_shape(2048, 576, 49152), (ChunkShape{2048, 1024}));
}

}  // namespace
}  // namespace paperlab::kernels::cross_entropy_test
