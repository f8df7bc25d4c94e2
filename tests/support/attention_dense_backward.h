#pragma once
// The backward pass of attention_dense.h.

#include <cmath>
#include <cstdint>
#include <utility>
#include <vector>

#include "tests/support/attention_dense.h"

namespace paperlab::test {

// Also sums what each row gives to the gradients of the inputs.
template <class Real, class Formula>
class DenseBackward final : public DenseForward<Real, Formula> {
 public:
  explicit DenseBackward(const AttentionTensors& tensors)
      : DenseForward<Real, Formula>(tensors),
        query_(tensors.query),
        key_(tensors.key),
        value_(tensors.value),
        prefix_query_(tensors.prefix_query),
        prefix_key_(tensors.prefix_key),
        prefix_value_(tensors.prefix_value) {}

  // Those of AttentionTensors::backward_results().
  std::vector<Sums<Real>> take_gradients() {
    std::vector<Sums<Real>> gradients;
    for (Sums<Real>* sums : {&query_, &key_, &value_}) {
      gradients.push_back(std::move(*sums));
    }
    if (this->in().prefix_key.is_absent()) {
      return gradients;
    }
    if (!this->in().prefix_query.is_absent()) {
      gradients.push_back(std::move(prefix_query_));
    }
    gradients.push_back(std::move(prefix_key_));
    gradients.push_back(std::move(prefix_value_));
    return gradients;
  }

 private:
  // dp_n = g . v_n, ds_n = p_n (dp_n - sum_m p_m dp_m + h), dv_n = p_n g, dk_n = scale ds_n q,
  // dq = scale sum_n ds_n k_n.
  void on_row(std::int64_t b, std::int64_t h, std::int64_t t) override {
    const Real grad_lse = this->in().grad_lse.is_absent()
                              ? Real{0}
                              : static_cast<Real>(this->in().grad_lse.get(b, h, t, 0));
    Product<Real> mean;
    Real of_out = 0;
    if (Formula::kHasNorms && is_half(this->in().of.dtype)) {
      const std::size_t at = this->forward[0].at(b, h, t);
      for (std::size_t d = 0; d < this->g_.width; ++d) {
        of_out += std::abs(this->g_.row(t)[d]) *
                  static_cast<Real>(half_ulp(this->in().of.dtype, this->forward[0].value[at + d]));
      }
    }
    std::vector<Product<Real>> dp;
    for (std::size_t i = 0; i < this->columns_.size(); ++i) {
      dp.push_back(dot<Formula>(this->g_.row(t), this->v_.row(this->columns_[i]), this->g_.width));
      dp[i].sum = Formula::rounded(dp[i].sum);
      mean.sum += this->p_[i] * dp[i].sum;
      mean.norm += this->p_[i] * dp[i].norm;
    }
    for (std::size_t i = 0; i < this->columns_.size(); ++i) {
      const Real ds = Formula::rounded(this->p_[i] * (dp[i].sum - mean.sum + grad_lse));
      const Real norm = this->p_[i] * (dp[i].norm + mean.norm + std::abs(grad_lse));
      add_terms(b, h, t, i, this->scale() * ds, std::abs(this->scale()) * norm,
                std::abs(this->scale()) * this->p_[i] * of_out);
    }
  }

  void add_terms(std::int64_t b, std::int64_t h, std::int64_t t, std::size_t i, Real ds, Real norm,
                 Real of_out) {
    const std::int64_t column = this->columns_[i];
    if (this->is_entry(column)) {
      Sums<Real>& query = this->in().prefix_query.is_absent() ? query_ : prefix_query_;
      const std::size_t entry = prefix_key_.at(b, this->prefix_head(h), column);
      add<Formula>(query, query.at(b, h, t), ds, norm, this->k_.row(column), of_out);
      add<Formula>(prefix_key_, entry, ds, norm, this->prefix_q_.row(t), of_out);
      add<Formula>(prefix_value_, entry, this->p_[i], this->p_[i], this->g_.row(t));
    } else {
      const std::size_t key = key_.at(b, this->kv_head(h), column - this->num_entries());
      add<Formula>(query_, query_.at(b, h, t), ds, norm, this->k_.row(column), of_out);
      add<Formula>(key_, key, ds, norm, this->q_.row(t), of_out);
      add<Formula>(value_, key, this->p_[i], this->p_[i], this->g_.row(t));
    }
  }

  Sums<Real> query_, key_, value_, prefix_query_, prefix_key_, prefix_value_;
};

}  // namespace paperlab::test
