// The exact two-class model. From zero initialization, on exhaustive strings, u does not depend on
// the token and W[(l, w), (L, w')] does not depend on the tokens unless l is the target position,
// and then only on whether they are equal. So a string's score depends on its length and label
// alone: T_L^+ and T_L^-. Derivation: for each length, (token at l, last token, label) is jointly
// uniform on 8 values for every l other than the target and the last.

#include <algorithm>
#include <cmath>
#include <limits>

#include "paperlab/regular_language/dataset_internal.h"
#include "paperlab/regular_language/dynamics_internal.h"

namespace paperlab::regular_language {
namespace {

double sigmoid(double x) { return 1.0 / (1.0 + std::exp(-x)); }

double log_loss(double margin) {
  return std::max(0.0, -margin) + std::log1p(std::exp(-std::abs(margin)));
}

// Row `length` of w holds the logits of positions 1..length in order, the target's entry being the
// one of equal tokens, and then the target's logit of different tokens.
struct Scores {
  double plus;
  double minus;
  double z_plus;
  double z_minus;
};

// Beyond this spread of a row's logits the two labels get exponentials of their own: with a common
// maximum one of the two sums could underflow.
constexpr double kMaxSpread = 600.0;

class TwoClass final : public Dynamics {
 public:
  explicit TwoClass(const TrainOptions& options) : options_(options) {
    std::size_t offset = 0;
    for (int length = 2; length <= options.max_length; ++length) {
      offset_.push_back(offset);
      offset += static_cast<std::size_t>(length) + 1;
    }
    num_w_ = offset;
    e_plus_.resize(static_cast<std::size_t>(options.max_length));
    e_minus_.resize(static_cast<std::size_t>(options.max_length));
  }

  Parameters initial() const override {
    return {std::vector<double>(static_cast<std::size_t>(options_.max_length), 0.0),
            std::vector<double>(num_w_, 0.0)};
  }

  void gradient(const Parameters& at, Parameters& out) override {
    out.u.assign(at.u.size(), 0.0);
    out.w.resize(at.w.size());
    out.u[0] = -0.5 * sigmoid(-at.u[0]);
    for (int length = 2; length <= options_.max_length; ++length) {
      const std::size_t n = static_cast<std::size_t>(length);
      const std::size_t p = target(length);
      const Scores s = scores(at, length);
      const double q_plus = -sigmoid(-s.plus) / s.z_plus;
      const double q_minus = sigmoid(s.minus) / s.z_minus;
      const double r_plus = q_plus * s.plus;
      const double r_minus = q_minus * s.minus;
      double* w = out.w.data() + offset_[n - 2];
      for (std::size_t l = 0; l < n; ++l) {
        const double of_plus = e_plus_[l] * q_plus;
        const double of_minus = e_minus_[l] * q_minus;
        out.u[l] += 0.25 * (of_plus + of_minus);
        w[l] = (at.u[l] * (of_plus + of_minus) - (e_plus_[l] * r_plus + e_minus_[l] * r_minus)) /
               options_.attention_scale * (l == n - 1 ? 0.25 : 0.125);
      }
      const double scale = 0.25 / options_.attention_scale;
      w[p] = e_plus_[p] * q_plus * (at.u[p] - s.plus) * scale;
      w[n] = e_minus_[p] * q_minus * (at.u[p] - s.minus) * scale;
    }
  }

  // A length's strings are half of one label, half of the other; of length 1 all are positive.
  Evaluation evaluate(const Parameters& at) override {
    Evaluation out{log_loss(at.u[0]), 0.0, at.u[0]};
    bool all_correct = at.u[0] > 0.0;
    double num_correct = all_correct ? num_strings(1) : 0.0;
    for (int length = 2; length <= options_.max_length; ++length) {
      const Scores s = scores(at, length);
      out.loss += 0.5 * (log_loss(s.plus) + log_loss(-s.minus));
      out.min_margin = std::min({out.min_margin, s.plus, -s.minus});
      const int correct = (s.plus > 0.0 ? 1 : 0) + (s.minus < 0.0 ? 1 : 0);
      num_correct += 0.5 * correct * num_strings(length);
      all_correct = all_correct && correct == 2;
    }
    out.accuracy = all_correct ? 1.0 : num_correct / num_all_strings();
    return out;
  }

  std::vector<double> u_multiplicity() const override {
    return std::vector<double>(static_cast<std::size_t>(options_.max_length), 2.0);
  }

  std::vector<double> w_multiplicity() const override {
    std::vector<double> out(num_w_, 4.0);
    for (int length = 2; length <= options_.max_length; ++length) {
      const std::size_t n = static_cast<std::size_t>(length);
      double* row = out.data() + offset_[n - 2];
      row[target(length)] = row[n - 1] = row[n] = 2.0;
    }
    return out;
  }

  std::vector<double> full_u(const Parameters& at) const override {
    std::vector<double> u;
    for (const double x : at.u) {
      u.insert(u.end(), 2, x);
    }
    return u;
  }

  std::vector<double> full_w(const Parameters& at) const override {
    const std::size_t width = 2 * at.u.size();
    std::vector<double> w(width * width, 0.0);
    for (std::size_t n = 2; n <= at.u.size(); ++n) {
      const double* row = at.w.data() + offset_[n - 2];
      for (std::size_t key = 0; key < 2 * n; ++key) {
        for (std::size_t token = 0; token < 2; ++token) {
          const bool is_equal = key % 2 == token;
          if (key / 2 == n - 1 && !is_equal) {
            continue;  // the last position's other token never occurs
          }
          const bool is_target = key / 2 == target(static_cast<int>(n));
          w[key * width + 2 * (n - 1) + token] = row[is_target && !is_equal ? n : key / 2];
        }
      }
    }
    return w;
  }

 private:
  // The position, from 0, whose token decides the label of strings of this length.
  std::size_t target(int length) const {
    return options_.task == Task::kParityCot
               ? static_cast<std::size_t>(std::max(0, length - options_.base_length))
               : 0;
  }

  // Strings of this length over those of the longest: powers of 2, so that sums are exact, and no
  // 2^max_length in a double.
  double num_strings(int length) const {
    const int longest = longest_free();
    return std::ldexp(1.0, std::min(length, longest) - longest);
  }

  double num_all_strings() const {
    const int longest = longest_free();  // 2 + 4 + .. + 2^longest, then the other steps of a chain
    return 2.0 - std::ldexp(1.0, 1 - longest) + (options_.max_length - longest);
  }

  // Free tokens of the longest strings: those that a chain appends are not free.
  int longest_free() const {
    return options_.task == Task::kParityCot ? options_.base_length : options_.max_length;
  }

  // Fills the exponentials of the row for both labels and returns its scores.
  Scores scores(const Parameters& at, int length) {
    const std::size_t n = static_cast<std::size_t>(length);
    const std::size_t p = target(length);
    const double* row = at.w.data() + offset_[n - 2];
    const auto [low, high] = std::minmax_element(row, row + n + 1);
    if ((*high - *low) / options_.attention_scale <= kMaxSpread) {
      fill(row, n, *high, e_plus_);
      std::copy_n(e_plus_.begin(), n, e_minus_.begin());
      e_minus_[p] = std::exp((row[n] - *high) / options_.attention_scale);
    } else {
      std::vector<double> negative(row, row + n);
      negative[p] = row[n];
      fill(row, n, *std::max_element(row, row + n), e_plus_);
      fill(negative.data(), n, *std::max_element(negative.begin(), negative.end()), e_minus_);
    }
    Scores s{0.0, 0.0, 0.0, 0.0};
    for (std::size_t l = 0; l < n; ++l) {
      s.z_plus += e_plus_[l];
      s.plus += e_plus_[l] * at.u[l];
      s.z_minus += e_minus_[l];
      s.minus += e_minus_[l] * at.u[l];
    }
    s.plus /= s.z_plus;
    s.minus /= s.z_minus;
    return s;
  }

  void fill(const double* logits, std::size_t n, double high, std::vector<double>& e) const {
    for (std::size_t l = 0; l < n; ++l) {
      e[l] = std::exp((logits[l] - high) / options_.attention_scale);
    }
  }

  TrainOptions options_;
  std::vector<std::size_t> offset_;  // of row L at [L - 2]
  std::size_t num_w_ = 0;
  std::vector<double> e_plus_;   // of positive strings
  std::vector<double> e_minus_;  // of negative strings: another target logit
};

}  // namespace

std::unique_ptr<Dynamics> make_two_class(const TrainOptions& options) {
  return std::make_unique<TwoClass>(options);
}

}  // namespace paperlab::regular_language
