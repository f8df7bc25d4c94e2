#pragma once
// Dense attention for attention_exact.cpp, forward: all heads of a case in one number type, with
// the rounding of a formula between its steps, and norms of the sums.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include "kernels/common/number.h"
#include "tests/support/attention_exact.h"
#include "tests/support/attention_tensors.h"

namespace paperlab::test {

// How a formula rounds what it stores between its steps. Norms are summed by the exact one alone.
struct Exact {
  static constexpr bool kHasNorms = true;
  template <class Real>
  static Real rounded(Real x) {
    return x;
  }
};

struct Plain {
  static constexpr bool kHasNorms = false;
  template <class Real>
  static Real rounded(Real x) {
    return x;
  }
};

struct PlainBFloat16 {
  static constexpr bool kHasNorms = false;
  static float rounded(float x) { return round_to_bfloat16(x); }
};

struct PlainFloat16 {
  static constexpr bool kHasNorms = false;
  static float rounded(float x) { return kernels::from_float16(kernels::to_float16(x)); }
};

inline bool is_half(kernels::DType dtype) {
  return dtype == kernels::DType::kBFloat16 || dtype == kernels::DType::kFloat16;
}

// A tensor [B, heads, rows, width] of sums, and of the absolute values of their terms.
template <class Real>
struct Sums {
  Sums() = default;
  explicit Sums(const GuardedTensor& like)
      : heads(like.size(1)),
        rows(like.size(2)),
        width(like.size(3)),
        value(static_cast<std::size_t>(like.num_elements())),
        norm(value.size()),
        of_out(value.size()) {}

  std::size_t at(std::int64_t b, std::int64_t h, std::int64_t row) const {
    return static_cast<std::size_t>(((b * heads + h) * rows + row) * width);
  }

  std::int64_t heads = 0;
  std::int64_t rows = 0;
  std::int64_t width = 0;
  std::vector<Real> value;
  std::vector<Real> norm;
  std::vector<Real> of_out;  // how far it moves where `out` is rounded
};

// Rows of one head of a tensor.
template <class Real>
struct Matrix {
  Matrix() = default;
  Matrix(std::int64_t rows, std::int64_t width)
      : width(static_cast<std::size_t>(width)), values(static_cast<std::size_t>(rows * width)) {}
  Matrix(const GuardedTensor& tensor, std::int64_t b, std::int64_t h)
      : Matrix(tensor.size(2), tensor.size(3)) {
    append(tensor, b, h, 0);
  }

  void append(const GuardedTensor& tensor, std::int64_t b, std::int64_t h, std::int64_t first) {
    for (std::int64_t t = 0; t < tensor.size(2); ++t) {
      for (std::int64_t d = 0; d < tensor.size(3); ++d) {
        values[static_cast<std::size_t>(first + t) * width + static_cast<std::size_t>(d)] =
            static_cast<Real>(tensor.get(b, h, t, d));
      }
    }
  }

  Real* row(std::int64_t t) { return values.data() + static_cast<std::size_t>(t) * width; }

  std::size_t width = 0;
  std::vector<Real> values;
};

template <class Real>
struct Product {
  Real sum = 0;
  Real norm = 0;
};

template <class Formula, class Real>
Product<Real> dot(const Real* a, const Real* b, std::size_t count) {
  Product<Real> product;
  for (std::size_t d = 0; d < count; ++d) {
    product.sum += a[d] * b[d];
    if constexpr (Formula::kHasNorms) {
      product.norm += std::abs(a[d] * b[d]);
    }
  }
  return product;
}

// sums[at + d] += factor x[d], and its absolute value with `norm` for |factor|.
template <class Formula, class Real>
void add(Sums<Real>& sums, std::size_t at, Real factor, Real norm, const Real* x, Real of_out = 0) {
  for (std::size_t d = 0; d < static_cast<std::size_t>(sums.width); ++d) {
    sums.value[at + d] += factor * x[d];
    if constexpr (Formula::kHasNorms) {
      sums.norm[at + d] += norm * std::abs(x[d]);
      sums.of_out[at + d] += of_out * std::abs(x[d]);
    }
  }
}

// Half the distance of x to the next larger number of that dtype.
inline long double half_ulp(kernels::DType dtype, long double x) {
  const int digits = dtype == kernels::DType::kFloat64   ? 53
                     : dtype == kernels::DType::kFloat32 ? 24
                     : dtype == kernels::DType::kFloat16 ? 11
                                                         : 8;
  const int least = dtype == kernels::DType::kFloat64   ? -1022
                    : dtype == kernels::DType::kFloat16 ? -14
                                                        : -126;
  const int exponent = x == 0.0L || !std::isfinite(x) ? least : std::max(least, std::ilogb(x));
  return std::ldexp(1.0L, exponent - digits);
}

// All heads of a case, one at a time: columns are prefix entries 0..J-1, then keys 0..S-1.
template <class Real, class Formula>
class DenseForward {
 public:
  explicit DenseForward(const AttentionTensors& tensors)
      : in_(tensors),
        num_entries_(num_prefix_entries(tensors.of)),
        num_columns_(num_entries_ + tensors.of.num_keys),
        scale_(static_cast<Real>(scale_of(tensors.of))) {
    forward = {Sums<Real>(in_.out), Sums<Real>(in_.lse)};
  }
  virtual ~DenseForward() = default;
  DenseForward(const DenseForward&) = delete;
  DenseForward& operator=(const DenseForward&) = delete;

  void run() {
    for (std::int64_t b = 0; b < in_.of.batch; ++b) {
      for (std::int64_t h = 0; h < in_.of.num_heads; ++h) {
        load_head(b, h);
        for (std::int64_t t = 0; t < in_.of.num_queries; ++t) {
          run_row(b, h, t);
        }
      }
    }
  }

  std::vector<Sums<Real>> forward;  // out, lse
  Real largest_logit = 0;

 protected:
  // Gets each row that sees a column, after its results.
  virtual void on_row(std::int64_t /*b*/, std::int64_t /*h*/, std::int64_t /*t*/) {}

  const AttentionTensors& in() const { return in_; }
  std::int64_t num_entries() const { return num_entries_; }
  Real scale() const { return scale_; }
  std::int64_t kv_head(std::int64_t h) const {
    return h / (in_.of.num_heads / in_.of.num_kv_heads);
  }
  std::int64_t prefix_head(std::int64_t h) const {
    return h / (in_.of.num_heads / in_.of.num_prefix_heads);
  }
  bool is_entry(std::int64_t column) const { return column < num_entries_; }

  Matrix<Real> q_, prefix_q_, g_, k_, v_;  // of the head
  std::vector<std::int64_t> columns_;      // that the row sees
  std::vector<Real> p_;                    // of these columns

 private:
  void load_head(std::int64_t b, std::int64_t h) {
    q_ = Matrix<Real>(in_.query, b, h);
    prefix_q_ = in_.prefix_query.is_absent() ? q_ : Matrix<Real>(in_.prefix_query, b, h);
    g_ = Matrix<Real>(in_.grad_out, b, h);
    k_ = Matrix<Real>(num_columns_, in_.of.head_dim);
    v_ = Matrix<Real>(num_columns_, in_.of.head_dim);
    if (num_entries_ > 0) {
      k_.append(in_.prefix_key, b, prefix_head(h), 0);
      v_.append(in_.prefix_value, b, prefix_head(h), 0);
    }
    k_.append(in_.key, b, kv_head(h), num_entries_);
    v_.append(in_.value, b, kv_head(h), num_entries_);
  }

  bool sees(std::int64_t b, std::int64_t t, std::int64_t column) const {
    const std::int64_t num_past = in_.of.rule.num_past;
    const std::int64_t p = num_past + t + in_.of.num_keys - in_.of.num_queries;
    return is_entry(column) ? sees_entry(in_.of.rule, p, column, in_.start(b), in_.end(b))
                            : sees_key(in_.of.rule, p, num_past + column - num_entries_,
                                       in_.start(b), in_.end(b));
  }

  void run_row(std::int64_t b, std::int64_t h, std::int64_t t) {
    columns_.clear();
    for (std::int64_t column = 0; column < num_columns_; ++column) {
      if (sees(b, t, column)) {
        columns_.push_back(column);
      }
    }
    if (columns_.empty()) {
      forward[1].value[forward[1].at(b, h, t)] = -std::numeric_limits<Real>::infinity();
      return;
    }
    softmax(b, h, t);
    const std::size_t at = forward[0].at(b, h, t);
    for (std::size_t i = 0; i < columns_.size(); ++i) {
      add<Formula>(forward[0], at, p_[i], p_[i], v_.row(columns_[i]));
    }
    on_row(b, h, t);
  }

  // p_ = softmax of the row's logits, and lse. The logits are float32 numbers before they are
  // rounded to bfloat16, and so is lse.
  void softmax(std::int64_t b, std::int64_t h, std::int64_t t) {
    p_.clear();
    std::vector<Real> logits;
    for (const std::int64_t column : columns_) {
      const Real* q = is_entry(column) ? prefix_q_.row(t) : q_.row(t);
      logits.push_back(scale_ * dot<Plain>(q, k_.row(column), q_.width).sum);
      largest_logit = std::max(largest_logit, std::abs(logits.back()));
    }
    const std::size_t at = forward[1].at(b, h, t);
    forward[1].value[at] = log_sum_exp(logits);
    forward[1].norm[at] = 1;
    for (Real& x : logits) {
      x = Formula::rounded(x);
    }
    const Real lse = log_sum_exp(logits);
    for (const Real x : logits) {
      p_.push_back(Formula::rounded(std::exp(x - lse)));
    }
  }

  static Real log_sum_exp(const std::vector<Real>& logits) {
    const Real largest = *std::max_element(logits.begin(), logits.end());
    Real sum = 0;
    for (const Real x : logits) {
      sum += std::exp(x - largest);
    }
    return largest + std::log(sum);
  }

  const AttentionTensors& in_;
  std::int64_t num_entries_;
  std::int64_t num_columns_;
  Real scale_;
};

}  // namespace paperlab::test
