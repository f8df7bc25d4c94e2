#include "tests/support/attention_exact.h"

#include <algorithm>
#include <cmath>
#include <iomanip>
#include <limits>
#include <utility>

#include "kernels/common/number.h"
#include "tests/support/isa.h"

namespace paperlab::test {
namespace {

using kernels::DType;
using kernels::KeyRule;
using kernels::KeyRuleKind;

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

bool is_half(DType dtype) { return dtype == DType::kBFloat16 || dtype == DType::kFloat16; }

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
long double half_ulp(DType dtype, long double x) {
  const int digits = dtype == DType::kFloat64   ? 53
                     : dtype == DType::kFloat32 ? 24
                     : dtype == DType::kFloat16 ? 11
                                                : 8;
  const int least = dtype == DType::kFloat64 ? -1022 : dtype == DType::kFloat16 ? -14 : -126;
  const int exponent = x == 0.0L || !std::isfinite(x) ? least : std::max(least, std::ilogb(x));
  return std::ldexp(1.0L, exponent - digits);
}

// All heads of a case, one at a time: columns are prefix entries 0..J-1, then keys 0..S-1.
template <class Real, class Formula>
class DenseAttention {
 public:
  explicit DenseAttention(const AttentionTensors& tensors)
      : in_(tensors),
        num_entries_(num_prefix_entries(tensors.of)),
        num_columns_(num_entries_ + tensors.of.num_keys),
        scale_(static_cast<Real>(scale_of(tensors.of))) {
    forward = {Sums<Real>(in_.out), Sums<Real>(in_.lse)};
    query_ = Sums<Real>(in_.query);
    key_ = Sums<Real>(in_.key);
    value_ = Sums<Real>(in_.value);
    prefix_query_ = Sums<Real>(in_.prefix_query);
    prefix_key_ = Sums<Real>(in_.prefix_key);
    prefix_value_ = Sums<Real>(in_.prefix_value);
  }

  void run(Direction direction) {
    for (std::int64_t b = 0; b < in_.of.batch; ++b) {
      for (std::int64_t h = 0; h < in_.of.num_heads; ++h) {
        load_head(b, h);
        for (std::int64_t t = 0; t < in_.of.num_queries; ++t) {
          run_row(b, h, t, direction);
        }
      }
    }
    for (Sums<Real>* sums :
         {&query_, &key_, &value_, &prefix_query_, &prefix_key_, &prefix_value_}) {
      backward.push_back(std::move(*sums));
    }
    if (in_.prefix_query.is_absent()) {
      backward.erase(backward.begin() + 3);
    }
    if (in_.prefix_key.is_absent()) {
      backward.resize(3);
    }
  }

  std::vector<Sums<Real>> forward;   // out, lse
  std::vector<Sums<Real>> backward;  // those of AttentionTensors::backward_results()
  Real largest_logit = 0;

 private:
  std::int64_t kv_head(std::int64_t h) const {
    return h / (in_.of.num_heads / in_.of.num_kv_heads);
  }
  std::int64_t prefix_head(std::int64_t h) const {
    return h / (in_.of.num_heads / in_.of.num_prefix_heads);
  }
  bool is_entry(std::int64_t column) const { return column < num_entries_; }

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

  void run_row(std::int64_t b, std::int64_t h, std::int64_t t, Direction direction) {
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
    if (direction == Direction::kBoth) {
      differentiate(b, h, t);
    }
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

  // dp_n = g . v_n, ds_n = p_n (dp_n - sum_m p_m dp_m + h), dv_n = p_n g, dk_n = scale ds_n q,
  // dq = scale sum_n ds_n k_n.
  void differentiate(std::int64_t b, std::int64_t h, std::int64_t t) {
    const Real grad_lse =
        in_.grad_lse.is_absent() ? Real{0} : static_cast<Real>(in_.grad_lse.get(b, h, t, 0));
    Product<Real> mean;
    Real of_out = 0;
    if (Formula::kHasNorms && is_half(in_.of.dtype)) {
      const std::size_t at = forward[0].at(b, h, t);
      for (std::size_t d = 0; d < g_.width; ++d) {
        of_out += std::abs(g_.row(t)[d]) *
                  static_cast<Real>(half_ulp(in_.of.dtype, forward[0].value[at + d]));
      }
    }
    std::vector<Product<Real>> dp;
    for (std::size_t i = 0; i < columns_.size(); ++i) {
      dp.push_back(dot<Formula>(g_.row(t), v_.row(columns_[i]), g_.width));
      dp[i].sum = Formula::rounded(dp[i].sum);
      mean.sum += p_[i] * dp[i].sum;
      mean.norm += p_[i] * dp[i].norm;
    }
    for (std::size_t i = 0; i < columns_.size(); ++i) {
      const Real ds = Formula::rounded(p_[i] * (dp[i].sum - mean.sum + grad_lse));
      const Real norm = p_[i] * (dp[i].norm + mean.norm + std::abs(grad_lse));
      add_terms(b, h, t, i, scale_ * ds, std::abs(scale_) * norm,
                std::abs(scale_) * p_[i] * of_out);
    }
  }

  void add_terms(std::int64_t b, std::int64_t h, std::int64_t t, std::size_t i, Real ds, Real norm,
                 Real of_out) {
    const std::int64_t column = columns_[i];
    if (is_entry(column)) {
      Sums<Real>& query = in_.prefix_query.is_absent() ? query_ : prefix_query_;
      const std::size_t entry = prefix_key_.at(b, prefix_head(h), column);
      add<Formula>(query, query.at(b, h, t), ds, norm, k_.row(column), of_out);
      add<Formula>(prefix_key_, entry, ds, norm, prefix_q_.row(t), of_out);
      add<Formula>(prefix_value_, entry, p_[i], p_[i], g_.row(t));
    } else {
      const std::size_t key = key_.at(b, kv_head(h), column - num_entries_);
      add<Formula>(query_, query_.at(b, h, t), ds, norm, k_.row(column), of_out);
      add<Formula>(key_, key, ds, norm, q_.row(t), of_out);
      add<Formula>(value_, key, p_[i], p_[i], g_.row(t));
    }
  }

  const AttentionTensors& in_;
  std::int64_t num_entries_;
  std::int64_t num_columns_;
  Real scale_;
  Matrix<Real> q_, prefix_q_, g_, k_, v_;
  std::vector<std::int64_t> columns_;  // that the row sees
  std::vector<Real> p_;                // of these columns
  Sums<Real> query_, key_, value_, prefix_query_, prefix_key_, prefix_value_;
};

struct Slack {
  DType dtype;                // of the tensor
  long double of_norm = 0.0;  // eps (4 + largest |logit|)
};

template <class Real, class PlainReal, class Formula>
ExpectedTensor expected_tensor(const char* name, const Sums<Real>& exact,
                               const Sums<PlainReal>& plain, const Slack& slack, Formula) {
  ExpectedTensor expected{name, {exact.value.begin(), exact.value.end()}, {}};
  long double of_plain = 0.0L;
  for (std::size_t i = 0; i < exact.value.size(); ++i) {
    const auto stored = is_half(slack.dtype)
                            ? static_cast<long double>(Formula::rounded(plain.value[i]))
                            : static_cast<long double>(plain.value[i]);
    const long double error = std::abs(stored - expected.exact[i]);
    of_plain = std::isnan(error) ? of_plain : std::max(of_plain, error);
  }
  for (std::size_t i = 0; i < exact.value.size(); ++i) {
    const auto norm = static_cast<long double>(exact.norm[i]);
    expected.allowed.push_back(
        norm == 0.0L ? 0.0L
                     : 2.0L * of_plain + half_ulp(slack.dtype, expected.exact[i]) +
                           slack.of_norm * norm + static_cast<long double>(exact.of_out[i]));
  }
  return expected;
}

template <class Real, class PlainReal, class Formula>
ExpectedAttention expected_of(const AttentionTensors& tensors, Direction direction,
                              Formula formula) {
  DenseAttention<Real, Exact> exact(tensors);
  DenseAttention<PlainReal, Formula> plain(tensors);
  exact.run(direction);
  plain.run(direction);
  const DType dtype = tensors.of.dtype;
  const bool is_double = dtype == DType::kFloat64;
  const DType statistics = is_double ? DType::kFloat64 : DType::kFloat32;
  const long double eps = is_double ? 0x1p-52L : 0x1p-23L;
  const long double of_norm = eps * (4.0L + static_cast<long double>(exact.largest_logit));
  ExpectedAttention expected;
  expected.forward = {
      expected_tensor("out", exact.forward[0], plain.forward[0], {dtype, of_norm}, formula),
      expected_tensor("lse", exact.forward[1], plain.forward[1], {statistics, of_norm}, formula)};
  if (direction == Direction::kForward) {
    return expected;
  }
  std::vector<const char*> names = {"grad_query", "grad_key", "grad_value"};
  if (!tensors.prefix_query.is_absent()) {
    names.push_back("grad_prefix_query");
  }
  names.insert(names.end(), {"grad_prefix_key", "grad_prefix_value"});
  for (std::size_t i = 0; i < exact.backward.size(); ++i) {
    expected.backward.push_back(
        expected_tensor(names[i], exact.backward[i], plain.backward[i], {dtype, of_norm}, formula));
  }
  return expected;
}

// More than 1 is too much.
long double excess(double got, long double exact, long double allowed) {
  if (std::isinf(exact)) {
    return static_cast<long double>(got) == exact ? 0.0L
                                                  : std::numeric_limits<long double>::infinity();
  }
  const long double error = std::abs(static_cast<long double>(got) - exact);
  if (error <= allowed) {
    return 0.0L;
  }
  return std::isnan(error) || allowed == 0.0L ? std::numeric_limits<long double>::infinity()
                                              : error / allowed;
}

testing::AssertionResult are_within(const std::vector<const GuardedTensor*>& results,
                                    const std::vector<ExpectedTensor>& expected) {
  for (std::size_t i = 0; i < results.size(); ++i) {
    const testing::AssertionResult result = is_within(*results[i], expected[i]);
    if (!result) {
      return result;
    }
    if (!results[i]->has_untouched_gaps()) {
      return testing::AssertionFailure()
             << expected[i].name << ": memory between or around the elements was written";
    }
  }
  return testing::AssertionSuccess();
}

// Core entry c, by the exact partition.
bool sees_core(const KeyRule& rule, std::int64_t p, std::int64_t c, std::int64_t start,
               std::int64_t end) {
  const std::int64_t last = start + rule.kept + c * rule.group + rule.group - 1;
  return last < end && p - last >= rule.window;
}

// Whether the row sees the first core entry and the keys that it stands for.
bool is_truncated(const KeyRule& rule, std::int64_t p, std::int64_t start, std::int64_t end) {
  const std::int64_t least = rule.window + rule.group;
  const std::int64_t of_row = p + 1 - start - rule.kept;
  return rule.truncated && end - start - rule.kept >= least && of_row > rule.window &&
         of_row < least;
}

}  // namespace

bool sees_entry(const KeyRule& rule, std::int64_t p, std::int64_t n, std::int64_t start,
                std::int64_t end) {
  switch (rule.kind) {
    case KeyRuleKind::kCoreContext: {
      const std::int64_t core = std::max<std::int64_t>(0, n - rule.kept);
      return sees_core(rule, p, core, start, end) ||
             (core == 0 && is_truncated(rule, p, start, end));
    }
    case KeyRuleKind::kSinks: {
      const std::int64_t key = start + n;
      const bool is_in_window = p - key < rule.window;
      return n < rule.num_sinks && key < end && !is_in_window;
    }
    default:
      return false;
  }
}

bool sees_key(const KeyRule& rule, std::int64_t p, std::int64_t n, std::int64_t start,
              std::int64_t end) {
  if (n < start || n >= end) {
    return false;
  }
  switch (rule.kind) {
    case KeyRuleKind::kFull:
      return true;
    case KeyRuleKind::kDense:
      return n <= p;
    case KeyRuleKind::kWindow:
    case KeyRuleKind::kSinks:
      return n <= p && p - n < rule.window;
    case KeyRuleKind::kCoreContext:
      break;
  }
  if (n < start + rule.kept) {  // copies of it are in the prefix
    return n <= p && !sees_entry(rule, p, 0, start, end);
  }
  const std::int64_t from_first = n - start - rule.kept;
  const std::int64_t core = from_first / rule.group;
  const bool is_doubled = rule.overlap == 1 && from_first % rule.group == rule.group - 1 &&
                          !sees_core(rule, p, core + 1, start, end);
  return n <= p && (is_doubled || !sees_core(rule, p, core, start, end));
}

ExpectedAttention expected_attention(const AttentionTensors& tensors, Direction direction) {
  switch (tensors.of.dtype) {
    case DType::kFloat32:
      return expected_of<double, float>(tensors, direction, Plain());
    case DType::kFloat16:
      return expected_of<double, float>(tensors, direction, PlainFloat16());
    case DType::kBFloat16:
      return expected_of<double, float>(tensors, direction, PlainBFloat16());
    case DType::kFloat64:
      break;
  }
  return expected_of<long double, double>(tensors, direction, Plain());
}

testing::AssertionResult is_within(const GuardedTensor& actual, const ExpectedTensor& expected) {
  const std::vector<double> got = actual.values();
  if (got.size() != expected.exact.size()) {
    return testing::AssertionFailure()
           << expected.name << ": " << got.size() << " elements, not " << expected.exact.size();
  }
  std::size_t worst = 0;
  long double most = 0.0L;
  for (std::size_t i = 0; i < got.size(); ++i) {
    const long double here = excess(got[i], expected.exact[i], expected.allowed[i]);
    if (here > most) {
      most = here;
      worst = i;
    }
  }
  if (most == 0.0L) {
    return testing::AssertionSuccess();
  }
  const auto [b, h, t, d] = actual.index_of(static_cast<std::int64_t>(worst));
  return testing::AssertionFailure()
         << expected.name << "[" << b << ", " << h << ", " << t << ", " << d << "]: got "
         << std::setprecision(17) << got[worst] << ", exact " << expected.exact[worst] << ", error "
         << std::setprecision(4) << std::abs(got[worst] - expected.exact[worst]) << ", allowed "
         << expected.allowed[worst] << " (" << most << " times)";
}

testing::AssertionResult is_right(AttentionTensors& tensors, const ExpectedAttention& expected,
                                  Direction direction, const Executor& executor) {
  const std::vector<std::byte> before = tensors.input_bytes();
  tensors.run_forward(executor);
  const testing::AssertionResult forward = are_within(tensors.forward_results(), expected.forward);
  if (!forward) {
    return forward;
  }
  if (direction == Direction::kBoth) {
    tensors.run_backward(executor);
    const testing::AssertionResult backward =
        are_within(tensors.backward_results(), expected.backward);
    if (!backward) {
      return backward;
    }
  }
  if (tensors.input_bytes() != before) {
    return testing::AssertionFailure() << "an input was changed";
  }
  return testing::AssertionSuccess();
}

testing::AssertionResult is_right_everywhere(const AttentionCase& of, Direction direction) {
  AttentionTensors tensors(of);
  const ExpectedAttention expected = expected_attention(tensors, direction);
  for (const CpuIsa isa : all_isas()) {
    if (!is_available(isa)) {
      continue;
    }
    const ScopedIsa scoped(isa);
    const testing::AssertionResult result =
        is_right(tensors, expected, direction, serial_executor());
    if (!result) {
      return testing::AssertionFailure()
             << result.message() << "\n  on " << cpu_isa_name(isa) << ", " << literal_of(of);
    }
  }
  return testing::AssertionSuccess();
}

}  // namespace paperlab::test
