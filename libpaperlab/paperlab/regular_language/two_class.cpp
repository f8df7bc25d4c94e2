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

class TwoClass final : public Dynamics {
 public:
  explicit TwoClass(const TrainOptions& options) : options_(options) {
    std::size_t offset = 0;
    for (int length = 2; length <= options.max_length; ++length) {
      offset_.push_back(offset);
      offset += static_cast<std::size_t>(length) + 1;
    }
    num_w_ = offset;
    e_.resize(static_cast<std::size_t>(options.max_length) + 1);
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
      const double q = q_plus + q_minus;
      const double r = q_plus * s.plus + q_minus * s.minus;
      double* w = out.w.data() + offset_[n - 2];
      for (std::size_t l = 0; l < n; ++l) {
        out.u[l] += 0.25 * e_[l] * (l == p ? 0.0 : q);
        w[l] = e_[l] * (at.u[l] * q - r) / options_.attention_scale * (l == n - 1 ? 0.25 : 0.125);
      }
      const double scale = 0.25 / options_.attention_scale;
      out.u[p] += 0.25 * (e_[p] * q_plus + e_[n] * q_minus);
      w[p] = e_[p] * q_plus * (at.u[p] - s.plus) * scale;
      w[n] = e_[n] * q_minus * (at.u[p] - s.minus) * scale;
    }
  }

  // A length's strings are half of one label, half of the other; of length 1 all are positive.
  Evaluation evaluate(const Parameters& at) override {
    Evaluation out{log_loss(at.u[0]), share(1) * (at.u[0] > 0.0 ? 1.0 : 0.0), at.u[0]};
    bool all_correct = at.u[0] > 0.0;
    for (int length = 2; length <= options_.max_length; ++length) {
      const Scores s = scores(at, length);
      out.loss += 0.5 * (log_loss(s.plus) + log_loss(-s.minus));
      out.min_margin = std::min({out.min_margin, s.plus, -s.minus});
      const int correct = (s.plus > 0.0 ? 1 : 0) + (s.minus < 0.0 ? 1 : 0);
      out.accuracy += share(length) * 0.5 * correct;
      all_correct = all_correct && correct == 2;
    }
    out.accuracy = all_correct ? 1.0 : out.accuracy;
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

  // Share of all training strings that have this length, without 2^max_length in a double.
  double share(int length) const {
    if (options_.task == Task::kEvenPairs) {  // 2^length of 2^(max_length + 1) - 2
      return std::ldexp(1.0, length - options_.max_length) /
             (2.0 - std::ldexp(1.0, 1 - options_.max_length));
    }
    // 2^min(length, base_length) of 2^base_length - 2 + (base_length - 1) 2^base_length
    const int base = options_.base_length;
    return std::ldexp(1.0, std::min(length, base) - base) / (base - std::ldexp(1.0, 1 - base));
  }

  // Fills e_ with the exponentials of the row and returns its scores.
  Scores scores(const Parameters& at, int length) {
    const std::size_t n = static_cast<std::size_t>(length);
    const std::size_t p = target(length);
    const double* row = at.w.data() + offset_[n - 2];
    const double high = *std::max_element(row, row + n + 1);
    double z = 0.0;
    double sum = 0.0;
    for (std::size_t l = 0; l <= n; ++l) {
      e_[l] = std::exp((row[l] - high) / options_.attention_scale);
      z += l == p || l == n ? 0.0 : e_[l];
      sum += l == p || l == n ? 0.0 : e_[l] * at.u[l];
    }
    const double z_plus = z + e_[p];
    const double z_minus = z + e_[n];
    return {(sum + e_[p] * at.u[p]) / z_plus, (sum + e_[n] * at.u[p]) / z_minus, z_plus, z_minus};
  }

  TrainOptions options_;
  std::vector<std::size_t> offset_;  // of row L at [L - 2]
  std::size_t num_w_ = 0;
  std::vector<double> e_;
};

}  // namespace

std::unique_ptr<Dynamics> make_two_class(const TrainOptions& options) {
  return std::make_unique<TwoClass>(options);
}

}  // namespace paperlab::regular_language
