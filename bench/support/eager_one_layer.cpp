#include "bench/support/eager_one_layer.h"

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/softplus.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>

namespace paperlab::bench {
namespace {

// Strings of `length` tokens (token l is bit l of the string's number) on `width` positions; absent
// positions point behind the parameters.
struct Batch {
  at::Tensor u_index;  // [n * width]
  at::Tensor w_index;  // [n * width] into w [query, key]
  at::Tensor minus_y;  // [n]
  at::Tensor weight;   // [n]
  std::int64_t num_strings = 0;
  std::int64_t width = 0;
};

// Strings of one length and last token as rows of ones and zeros.
struct OneHot {
  at::Tensor rows;     // [n, 2 length]
  at::Tensor minus_y;  // [n]
  std::int64_t length = 0;
  std::int64_t query = 0;  // entry of w
};

OneHot one_hot(std::int64_t length, std::int64_t last) {
  std::vector<double> rows;
  std::vector<double> minus_y;
  for (std::int64_t string = 0; string < std::int64_t{1} << (length - 1); ++string) {
    const auto token = [=](std::int64_t l) { return l == length - 1 ? last : (string >> l) & 1; };
    for (std::int64_t l = 0; l < length; ++l) {
      rows.insert(rows.end(), {token(l) == 0 ? 1.0 : 0.0, token(l) == 0 ? 0.0 : 1.0});
    }
    minus_y.push_back(token(0) == last ? -1.0 : 1.0);
  }
  const at::TensorOptions real = at::TensorOptions().dtype(at::kDouble);
  return {at::tensor(rows, real).view({-1, 2 * length}), at::tensor(minus_y, real), length,
          2 * (length - 1) + last};
}

class BatchBuilder {
 public:
  BatchBuilder(std::int64_t max_length, std::int64_t width)
      : keys_(2 * max_length), width_(width) {}

  void add_length(std::int64_t length) {
    for (std::int64_t string = 0; string < std::int64_t{1} << length; ++string) {
      const auto token = [=](std::int64_t l) { return (string >> l) & 1; };
      const std::int64_t query = 2 * (length - 1) + token(length - 1);
      for (std::int64_t l = 0; l < width_; ++l) {
        const std::int64_t key = 2 * l + token(l);
        u_.push_back(l < length ? key : keys_);
        w_.push_back(l < length ? query * keys_ + key : keys_ * keys_);
      }
      minus_y_.push_back(token(0) == token(length - 1) ? -1.0 : 1.0);
      weight_.push_back(1.0 / static_cast<double>(std::int64_t{1} << length));
    }
  }

  Batch finish() const {
    const at::TensorOptions index = at::TensorOptions().dtype(at::kLong);
    const at::TensorOptions real = at::TensorOptions().dtype(at::kDouble);
    return {at::tensor(u_, index),
            at::tensor(w_, index),
            at::tensor(minus_y_, real),
            at::tensor(weight_, real),
            static_cast<std::int64_t>(minus_y_.size()),
            width_};
  }

 private:
  std::int64_t keys_;
  std::int64_t width_;
  std::vector<std::int64_t> u_;
  std::vector<std::int64_t> w_;
  std::vector<double> minus_y_;
  std::vector<double> weight_;
};

at::Tensor copied(const std::vector<double>& values, at::IntArrayRef sizes) {
  return at::tensor(values, at::TensorOptions().dtype(at::kDouble)).view(sizes);
}

std::vector<double> copied(const at::Tensor& tensor) {
  const at::Tensor whole = tensor.contiguous();
  const double* data = whole.const_data_ptr<double>();
  return {data, data + whole.numel()};
}

}  // namespace

struct EagerEvenPairs::State {
  std::int64_t keys;
  double attention_scale;
  EagerBatch kind;
  std::vector<Batch> batches;
  std::vector<OneHot> one_hots;
  at::Tensor u;  // [keys]
  at::Tensor w;  // [query, key]: what one softmax reads is contiguous
  at::Tensor absent_u;
  at::Tensor absent_w;

  at::Tensor scores(const Batch& batch, const at::Tensor& of_u, const at::Tensor& logits) const {
    const auto shape = {batch.num_strings, batch.width};
    const at::Tensor phi =
        at::softmax(logits.index_select(0, batch.w_index).view(shape), /*dim=*/1);
    return phi.mul(of_u.index_select(0, batch.u_index).view(shape)).sum(1);
  }

  at::Tensor tabulated_loss(const OneHot& strings) const {
    const at::Tensor of_u = u.narrow(0, 0, 2 * strings.length);
    const at::Tensor logits =
        w.select(0, strings.query).narrow(0, 0, 2 * strings.length).div(attention_scale);
    const at::Tensor e = logits.sub(logits.detach().max()).exp();
    const at::Tensor t = strings.rows.mv(e.mul(of_u)).div(strings.rows.mv(e));
    const double num_of_length = 2.0 * static_cast<double>(strings.rows.size(0));
    return at::softplus(t.mul(strings.minus_y)).sum().div(num_of_length);
  }

  at::Tensor loss() const {
    if (kind == EagerBatch::kTabulated) {
      at::Tensor total = tabulated_loss(one_hots.front());
      for (std::size_t i = 1; i < one_hots.size(); ++i) {
        total = total.add(tabulated_loss(one_hots[i]));
      }
      return total;
    }
    const at::Tensor logits = w.view({-1}).div(attention_scale);
    if (kind == EagerBatch::kPadded) {
      const Batch& all = batches.front();
      const at::Tensor t = scores(all, at::cat({u, absent_u}), at::cat({logits, absent_w}));
      return at::softplus(all.minus_y.mul(t)).dot(all.weight);
    }
    at::Tensor total;
    for (const Batch& batch : batches) {
      const at::Tensor of_length = at::softplus(scores(batch, u, logits).mul(batch.minus_y)).mean();
      total = total.defined() ? total.add(of_length) : of_length;
    }
    return total;
  }

  void backward() {
    u.mutable_grad().reset();
    w.mutable_grad().reset();
    loss().backward();
  }
};

EagerEvenPairs::EagerEvenPairs(int max_length, double attention_scale, EagerBatch batch)
    : state_(std::make_unique<State>()) {
  const at::TensorOptions real = at::TensorOptions().dtype(at::kDouble);
  state_->keys = 2 * static_cast<std::int64_t>(max_length);
  state_->attention_scale = attention_scale;
  state_->kind = batch;
  state_->absent_u = at::zeros({1}, real);
  state_->absent_w = at::tensor({-std::numeric_limits<double>::infinity()}, real);
  BatchBuilder padded(max_length, max_length);
  for (std::int64_t length = 1; length <= max_length; ++length) {
    if (batch == EagerBatch::kTabulated) {
      state_->one_hots.push_back(one_hot(length, 0));
      state_->one_hots.push_back(one_hot(length, 1));
    } else if (batch == EagerBatch::kPadded) {
      padded.add_length(length);
    } else {
      BatchBuilder builder(max_length, length);
      builder.add_length(length);
      state_->batches.push_back(builder.finish());
    }
  }
  if (batch == EagerBatch::kPadded) {
    state_->batches.push_back(padded.finish());
  }
}

EagerEvenPairs::~EagerEvenPairs() = default;

void EagerEvenPairs::set(const EagerParameters& parameters) {
  const auto keys = state_->keys;
  state_->u = copied(parameters.u, {keys}).requires_grad_();
  state_->w = copied(parameters.w, {keys, keys}).t().contiguous().requires_grad_();
}

EagerParameters EagerEvenPairs::get() const {
  const at::NoGradGuard no_grad;
  return {copied(state_->u), copied(state_->w.t())};
}

EagerParameters EagerEvenPairs::gradient() {
  state_->backward();
  const at::NoGradGuard no_grad;
  return {copied(state_->u.grad()), copied(state_->w.grad().t())};
}

void EagerEvenPairs::step(double u_rate, double w_rate) {
  state_->backward();
  const at::NoGradGuard no_grad;
  state_->u.sub_(state_->u.grad(), u_rate);
  state_->w.sub_(state_->w.grad(), w_rate);
}

void set_eager_threads(int num_threads) { at::set_num_threads(num_threads); }

}  // namespace paperlab::bench
