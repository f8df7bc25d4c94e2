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
#include "tests/support/isa.h"

namespace paperlab::kernels {
namespace {

using Bytes = std::vector<std::byte>;

constexpr DType kDTypes[] = {DType::kFloat32, DType::kBFloat16, DType::kFloat64};
constexpr Reduction kReductions[] = {Reduction::kMean, Reduction::kSum, Reduction::kNone};
constexpr double kInfinity = std::numeric_limits<double>::infinity();

Bytes nans(std::int64_t count) {  // 0xFF... is NaN in every dtype
  return Bytes(static_cast<std::size_t>(count * 8), std::byte{0xFF});
}

struct Sizes {
  std::int64_t n;
  std::int64_t d;
  std::int64_t v;
};

struct Options {
  bool has_bias = true;
  Reduction reduction = Reduction::kMean;
  double z_loss = 0.0;
  bool is_turned = false;  // the weight's columns are contiguous instead of its rows
  std::int64_t gap = 0;    // between the lines of the weight
  std::int64_t ignore_index = -100;
  double scale = 1.0;  // of x
};

// Inputs, results filled with NaN, and the gradient of the loss.
struct Case {
  Case(DType type, Sizes of, Options with) : dtype(type), sizes(of), options(with) {
    const auto& [n, d, v] = of;
    x = nans(n * d);
    fill(x, n * d, 1, with.scale);
    const std::int64_t lines = with.is_turned ? d : v;
    const std::int64_t stride = (with.is_turned ? v : d) + with.gap;
    weight = nans(lines * stride);
    view = {weight.data(), with.is_turned ? 1 : stride, with.is_turned ? stride : 1};
    for (std::int64_t i = 0; i < v * d; ++i) {
      store_number(weight.data(), dtype, i / d * view.row_stride + i % d * view.k_stride,
                   number(2, i));
    }
    bias = nans(v);
    fill(bias, v, 3, 1.0);
    for (std::int64_t row = 0; row < n; ++row) {
      target.push_back(row % 3 == 1 ? with.ignore_index : row * 7919 % v);
    }
    for (Bytes* result : {&loss, &lse, &grad_loss}) {
      *result = nans(n + 1);
    }
    fill(grad_loss, n + 1, 4, 1.0, statistics_dtype(dtype));
    grad_x = nans(n * d);
    grad_weight = nans(v * d);
    grad_bias = nans(v);
  }

  // Numbers in -1..1 with 7 bits: exact in every dtype.
  static double number(std::uint64_t stream, std::int64_t at) {
    const double x = philox_normal(17, stream, static_cast<std::uint64_t>(at));
    return std::nearbyint(std::clamp(x / 2.0, -1.0, 1.0) * 64.0) / 64.0;
  }
  void fill(Bytes& bytes, std::int64_t count, std::uint64_t stream, double scale) const {
    fill(bytes, count, stream, scale, dtype);
  }
  static void fill(Bytes& bytes, std::int64_t count, std::uint64_t stream, double scale,
                   DType type) {
    for (std::int64_t i = 0; i < count; ++i) {
      store_number(bytes.data(), type, i, scale * number(stream, i));
    }
  }

  LinearCrossEntropy problem() const {
    GemmOperand of_weight = view;
    of_weight.data = weight.data();
    return {dtype,
            sizes.n,
            sizes.d,
            sizes.v,
            x.data(),
            of_weight,
            options.has_bias ? bias.data() : nullptr,
            target.data(),
            options.ignore_index,
            options.reduction,
            options.z_loss};
  }
  LinearCrossEntropyResult result() { return {loss.data(), lse.data()}; }
  LinearCrossEntropyGradients gradients() {
    return {grad_loss.data(), lse.data(), grad_x.data(), grad_weight.data(), grad_bias.data()};
  }

  void run(const Executor& executor) {
    linear_cross_entropy(problem(), result(), gemm, executor);
    linear_cross_entropy_backward(problem(), gradients(), gemm, executor);
  }

  double statistic(const Bytes& of, std::int64_t at) const {
    return load_number(of.data(), statistics_dtype(dtype), at);
  }

  DType dtype;
  Sizes sizes;
  Options options;
  Bytes x;
  Bytes weight;
  GemmOperand view;
  Bytes bias;
  std::vector<std::int64_t> target;
  Bytes grad_loss;
  Bytes loss;
  Bytes lse;
  Bytes grad_x;
  Bytes grad_weight;
  Bytes grad_bias;
};

// Values, and how far from them results may be.
struct Bounded {
  explicit Bounded(std::int64_t count)
      : value(static_cast<std::size_t>(count)), bound(static_cast<std::size_t>(count)) {}
  void add(std::int64_t at, double x, double error) {
    value[static_cast<std::size_t>(at)] += x;
    bound[static_cast<std::size_t>(at)] += error;
  }
  std::vector<double> value;
  std::vector<double> bound;
};

// The textbook. With u the unit roundoff, a sum of K products is off by u (K + 2) times the sum of
// absolute values; e^x by u (8 + 2 |x|) of itself; the sum of a chunk's e^x by a term of u for each
// 16 columns.
class Textbook {
 public:
  explicit Textbook(const Case& of)
      : loss(of.sizes.n),
        lse(of.sizes.n),
        grad_x(of.sizes.n * of.sizes.d),
        grad_weight(of.sizes.v * of.sizes.d),
        grad_bias(of.sizes.v),
        case_(of),
        roundoff_(of.dtype == DType::kFloat64 ? 0x1p-53 : 0x1p-24),
        logits_(static_cast<std::size_t>(of.sizes.v)),
        errors_(static_cast<std::size_t>(of.sizes.v)) {
    const auto& target = of.target;
    num_counted = of.sizes.n - std::count(target.begin(), target.end(), of.options.ignore_index);
    for (std::int64_t row = 0; row < of.sizes.n; ++row) {
      set_logits(row);
      add_loss(row);
      add_gradients(row);
    }
    round();
  }

  Bounded loss;  // of each row
  Bounded lse;
  Bounded grad_x;
  Bounded grad_weight;
  Bounded grad_bias;
  std::int64_t num_counted;

 private:
  double number(const void* data, std::int64_t at) const {
    return load_number(data, case_.dtype, at);
  }
  double weight(std::int64_t v, std::int64_t d) const {
    return number(case_.weight.data(), v * case_.view.row_stride + d * case_.view.k_stride);
  }

  void set_logits(std::int64_t row) {
    const auto& [n, width, vocab_size] = case_.sizes;
    for (std::int64_t v = 0; v < vocab_size; ++v) {
      double sum = case_.options.has_bias ? number(case_.bias.data(), v) : 0.0;
      double norm = std::fabs(sum);
      for (std::int64_t d = 0; d < width; ++d) {
        const double term = number(case_.x.data(), row * width + d) * weight(v, d);
        sum += term;
        norm += std::fabs(term);
      }
      const auto at = static_cast<std::size_t>(v);
      logits_[at] = sum;
      errors_[at] = roundoff_ * static_cast<double>(width + 2) * norm;
    }
  }

  void add_loss(std::int64_t row) {
    const double most = *std::max_element(logits_.begin(), logits_.end());
    double sum = 0.0;
    for (const double logit : logits_) {
      sum += std::exp(logit - most);
    }
    const double exact = most + std::log(sum);
    const auto columns = static_cast<double>(case_.sizes.v);
    const double error = *std::max_element(errors_.begin(), errors_.end()) +
                         roundoff_ * (10.0 + columns / 16.0 + std::fabs(exact));
    lse.add(row, exact, error);
    const std::int64_t target = case_.target[static_cast<std::size_t>(row)];
    if (target != case_.options.ignore_index) {
      const double z = case_.options.z_loss;
      const double of_row = exact - logits_[static_cast<std::size_t>(target)] + z * exact * exact;
      loss.add(row, of_row,
               2.0 * error * (1.0 + z * std::fabs(exact)) + roundoff_ * std::fabs(of_row));
    }
  }

  // Of the loss with the lse that backward gets: rounded.
  void add_gradients(std::int64_t row) {
    const auto& [n, width, vocab_size] = case_.sizes;
    const std::int64_t target = case_.target[static_cast<std::size_t>(row)];
    if (target == case_.options.ignore_index) {
      return;
    }
    const bool is_none = case_.options.reduction == Reduction::kNone;
    double grad = case_.statistic(case_.grad_loss, is_none ? row : 0);
    grad /= case_.options.reduction == Reduction::kMean ? static_cast<double>(num_counted) : 1.0;
    const double of_lse = case_.statistic(case_.lse, row);
    const double factor = grad * (1.0 + 2.0 * case_.options.z_loss * of_lse);
    for (std::int64_t v = 0; v < vocab_size; ++v) {
      const double logit = logits_[static_cast<std::size_t>(v)];
      const double scaled = factor * std::exp(logit - of_lse);
      const double onehot = v == target ? grad : 0.0;
      const double distance = std::fabs(logit - of_lse);
      const double error =
          1.01 * std::fabs(scaled) *
              (errors_[static_cast<std::size_t>(v)] + roundoff_ * (10.0 + 2.0 * distance)) +
          2.0 * roundoff_ * std::fabs(onehot);
      add_gradient(row, v, scaled - onehot, error);
    }
  }

  void add_gradient(std::int64_t row, std::int64_t v, double g, double error) {
    const auto& [n, width, vocab_size] = case_.sizes;
    const double of_x = error + roundoff_ * static_cast<double>(vocab_size + 10) * std::fabs(g);
    const double of_weight = error + roundoff_ * static_cast<double>(n + 10) * std::fabs(g);
    grad_bias.add(v, g, of_weight);
    for (std::int64_t d = 0; d < width; ++d) {
      const double x = number(case_.x.data(), row * width + d);
      grad_x.add(row * width + d, g * weight(v, d), of_x * std::fabs(weight(v, d)));
      grad_weight.add(v * width + d, g * x, of_weight * std::fabs(x));
    }
  }

  // A bfloat16 gradient is rounded once more.
  void round() {
    for (Bounded* of : {&grad_x, &grad_weight, &grad_bias}) {
      for (std::size_t i = 0; case_.dtype == DType::kBFloat16 && i < of->value.size(); ++i) {
        of->bound[i] += 0x1p-8 * (std::fabs(of->value[i]) + of->bound[i]);
      }
    }
  }

  const Case& case_;
  double roundoff_;
  std::vector<double> logits_;
  std::vector<double> errors_;
};

void expect_close(const Bytes& got, DType dtype, const Bounded& exact, const char* what) {
  for (std::size_t i = 0; i < exact.value.size(); ++i) {
    const double x = load_number(got.data(), dtype, static_cast<std::int64_t>(i));
    ASSERT_TRUE(std::fabs(x - exact.value[i]) <= exact.bound[i] + 1e-37)
        << what << '[' << i << "] is " << x << ", exact " << exact.value[i] << " +- "
        << exact.bound[i];
  }
}

void expect_close(const Case& of) {
  SCOPED_TRACE(testing::Message() << "dtype " << static_cast<int>(of.dtype) << ", N " << of.sizes.n
                                  << ", D " << of.sizes.d << ", V " << of.sizes.v);
  const Textbook exact(of);
  const DType statistics = statistics_dtype(of.dtype);
  expect_close(of.lse, statistics, exact.lse, "lse");
  expect_close(of.grad_x, of.dtype, exact.grad_x, "grad_x");
  expect_close(of.grad_weight, of.dtype, exact.grad_weight, "grad_weight");
  expect_close(of.grad_bias, of.dtype, exact.grad_bias, "grad_bias");
  if (of.options.reduction == Reduction::kNone) {
    expect_close(of.loss, statistics, exact.loss, "loss");
    return;
  }
  const bool is_mean = of.options.reduction == Reduction::kMean;
  const double divisor = is_mean ? static_cast<double>(exact.num_counted) : 1.0;
  Bounded sum(1);
  for (std::size_t row = 0; row < exact.loss.value.size(); ++row) {
    sum.add(0, exact.loss.value[row] / divisor, exact.loss.bound[row] / divisor);
  }
  sum.bound[0] += 0x1p-24 * std::fabs(sum.value[0]);
  expect_close(of.loss, statistics, sum, "loss");
}

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
}  // namespace paperlab::kernels
