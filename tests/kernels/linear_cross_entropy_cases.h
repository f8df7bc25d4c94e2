#pragma once
// Cases of linear_cross_entropy: inputs, results that start as NaN, and the textbook with bounds.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include "kernels/common/number.h"
#include "kernels/gemm/gemm.h"
#include "kernels/linear_cross_entropy/linear_cross_entropy.h"
#include "paperlab/core/parallel.h"
#include "paperlab/core/rng.h"

namespace paperlab::kernels::cross_entropy_test {

using Bytes = std::vector<std::byte>;

inline constexpr DType kDTypes[] = {DType::kFloat32, DType::kBFloat16, DType::kFloat64};
inline constexpr DType kCudaDTypes[] = {DType::kFloat32, DType::kBFloat16, DType::kFloat16,
                                        DType::kFloat64};
inline constexpr Reduction kReductions[] = {Reduction::kMean, Reduction::kSum, Reduction::kNone};
inline constexpr double kInfinity = std::numeric_limits<double>::infinity();

inline Bytes nans(std::int64_t count) {  // 0xFF... is NaN in every dtype
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

  bool has_same_results(const Case& other) const {
    return loss == other.loss && lse == other.lse && grad_x == other.grad_x &&
           grad_weight == other.grad_weight && grad_bias == other.grad_bias;
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

// What the CPU and the GPU differ in.
struct Rounding {
  double terms = 16.0;           // columns whose e^x cost one more u in their sum
  double constant = 10.0;        // u of a row's sum whatever its columns
  double gradient = 0.0;         // roundoff of the gradient of a logit,
  double least_gradient = 0.0;   // and half of the smallest number
  bool is_scaled_later = false;  // by the gradient of a sum or a mean
};

// Of the GPU's form: a thread adds packs of 4 e^x, after each of which it may have a new largest
// logit; 256 threads are added. Products read gradients of 16 bits.
inline Rounding cuda_rounding(DType dtype) {
  Rounding rounding;
  rounding.terms = 8.0;
  rounding.constant = 40.0;
  rounding.gradient = dtype == DType::kBFloat16 ? 0x1p-8 : dtype == DType::kFloat16 ? 0x1p-11 : 0.0;
  rounding.least_gradient = dtype == DType::kFloat16 ? 0x1p-25 : 0.0;
  rounding.is_scaled_later = true;
  return rounding;
}

// The textbook. With u the unit roundoff, a sum of K products is off by u (K + 2) times the sum of
// absolute values; e^x by u (8 + 2 |x|) of itself; the sum of a chunk's e^x by a term of u for each
// 16 columns.
class Textbook {
 public:
  explicit Textbook(const Case& of, Rounding rounding = {})
      : loss(of.sizes.n),
        lse(of.sizes.n),
        grad_x(of.sizes.n * of.sizes.d),
        grad_weight(of.sizes.v * of.sizes.d),
        grad_bias(of.sizes.v),
        case_(of),
        rounding_(rounding),
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
    const double error =
        *std::max_element(errors_.begin(), errors_.end()) +
        roundoff_ * (rounding_.constant + columns / rounding_.terms + std::fabs(exact));
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
      const double later = rounding_.is_scaled_later && !is_none ? std::fabs(grad) : 1.0;
      const double g = scaled - onehot;
      add_gradient(
          row, v, g,
          error + rounding_.gradient * (std::fabs(g) + error) + rounding_.least_gradient * later);
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

  // A gradient of 16 bits is rounded once more.
  void round() {
    for (Bounded* of : {&grad_x, &grad_weight, &grad_bias}) {
      for (std::size_t i = 0; i < of->value.size(); ++i) {
        const double size = std::fabs(of->value[i]) + of->bound[i];
        of->bound[i] += case_.dtype == DType::kBFloat16  ? 0x1p-8 * size
                        : case_.dtype == DType::kFloat16 ? 0x1p-11 * size + 0x1p-25
                                                         : 0.0;
      }
    }
  }

  const Case& case_;
  Rounding rounding_;
  double roundoff_;
  std::vector<double> logits_;
  std::vector<double> errors_;
};

inline void expect_close(const Bytes& got, DType dtype, const Bounded& exact, const char* what) {
  for (std::size_t i = 0; i < exact.value.size(); ++i) {
    const double x = load_number(got.data(), dtype, static_cast<std::int64_t>(i));
    ASSERT_TRUE(std::fabs(x - exact.value[i]) <= exact.bound[i] + 1e-37)
        << what << '[' << i << "] is " << x << ", exact " << exact.value[i] << " +- "
        << exact.bound[i];
  }
}

inline void expect_close(const Case& of, Rounding rounding = {}) {
  SCOPED_TRACE(testing::Message() << "dtype " << static_cast<int>(of.dtype) << ", N " << of.sizes.n
                                  << ", D " << of.sizes.d << ", V " << of.sizes.v);
  const Textbook exact(of, rounding);
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

// --- the GPU's kernels, on a GPU and block by block on the CPU -----------------------------------

inline const std::vector<Sizes>& cuda_sizes() {
  static const std::vector<Sizes> all = {{1, 1, 1},    {1, 3, 2},    {2, 5, 15},  {3, 1, 16},
                                         {5, 7, 17},   {7, 16, 63},  {4, 33, 64}, {13, 9, 65},
                                         {33, 5, 131}, {300, 2, 33}, {3, 4, 2100}};
  return all;
}

// Runs every dtype, size and reduction with options in turns, and compares. run(case, number).
template <class Run>
void expect_close_of_all(const std::vector<Sizes>& all, Run run) {
  for (const DType dtype : kCudaDTypes) {
    int i = 0;
    for (const Sizes sizes : all) {
      for (const Reduction reduction : kReductions) {
        ++i;
        Options options;
        options.has_bias = i % 2 == 0;
        options.reduction = reduction;
        options.z_loss = i % 5 < 2 ? 0.0 : 0.05;
        options.is_turned = i % 4 == 0;
        options.gap = i % 7;
        options.ignore_index = i % 3 == 0 ? sizes.v - 1 : -100;
        Case of(dtype, sizes, options);
        run(of, i);
        if (sizes.v > 1 || options.ignore_index < 0) {  // else no row counts
          expect_close(of, cuda_rounding(dtype));
        }
      }
    }
  }
}

// A NaN and targets that no column has.
template <class Run>
void expect_wrong_rows_alone(DType dtype, Run run) {
  Options options;
  options.reduction = Reduction::kNone;
  Case of(dtype, {40, 6, 70}, options);
  store_number(of.x.data(), dtype, 30, std::numeric_limits<double>::quiet_NaN());
  of.target[8] = 70;
  of.target[9] = -1;
  run(of);
  for (std::int64_t row = 0; row < 40; ++row) {
    const bool is_wrong = row == 5 || row == 8 || row == 9;
    EXPECT_EQ(std::isnan(of.statistic(of.loss, row)), is_wrong) << row;
    EXPECT_EQ(std::isnan(of.statistic(of.lse, row)), row == 5) << row;
    EXPECT_EQ(std::isnan(load_number(of.grad_x.data(), dtype, row * 6)), is_wrong) << row;
  }
}

}  // namespace paperlab::kernels::cross_entropy_test
