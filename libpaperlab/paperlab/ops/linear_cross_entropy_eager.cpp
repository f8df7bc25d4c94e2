#include <ATen/TensorOperators.h>
#include <ATen/ops/full.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/logaddexp.h>
#include <ATen/ops/logsumexp.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <limits>
#include <utility>

#include "paperlab/ops/dispatch_rules_internal.h"
#include "paperlab/ops/kernel_dtype_internal.h"
#include "paperlab/ops/linear_cross_entropy_internal.h"
#include "paperlab/ops/torch_products_internal.h"

namespace paperlab::ops::eager {
namespace {

using kernels::Reduction;

// Logits of a chunk: 64 MiB in float32.
constexpr std::int64_t kChunkElements = std::int64_t{1} << 24;
// Of the vocabulary: enough columns for a product, few enough to be held in float32.
constexpr std::int64_t kChunkWords = std::int64_t{1} << 13;
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

// Words first .. first + count - 1 of the vocabulary.
struct Words {
  std::int64_t first;
  std::int64_t count;
  at::Tensor weight;  // [count, D], a factor
  at::Tensor bias;    // [count], in the dtype of sums, or not defined
};

// The rows of a problem, [N, D] and [N].
struct Rows {
  explicit Rows(const LinearCrossEntropyProblem& of)
      : problem(of),
        dtype(statistics_dtype(of.x.scalar_type())),
        factors(factor_dtype(of.x, dtype)),
        vocab_size(of.weight.size(0)),
        x(of.x.reshape({of.target.numel(), of.x.size(-1)})),
        counted(of.target.reshape({-1}) != of.ignore_index),
        refused(counted &
                ((of.target.reshape({-1}) < 0) | (of.target.reshape({-1}) >= of.weight.size(0)))),
        index(at::where(counted, of.target.reshape({-1}), 0).clamp(0, vocab_size - 1)),
        step(std::max<std::int64_t>(1, kChunkElements / std::min(vocab_size, kChunkWords))) {}

  std::int64_t count() const { return index.size(0); }
  at::TensorOptions sums() const { return x.options().dtype(dtype); }

  // Of rows first..
  at::Tensor of(const at::Tensor& all, std::int64_t first) const {
    return all.narrow(0, first, std::min(step, count() - first));
  }
  at::Tensor inputs(std::int64_t first) const { return of(x, first).to(factors); }
  bool is_half() const { return x.scalar_type() != dtype; }

  Words words(std::int64_t first) const {
    const std::int64_t size = std::min(kChunkWords, vocab_size - first);
    return {
        first, size, problem.weight.narrow(0, first, size).to(factors),
        problem.bias.has_value() ? problem.bias->narrow(0, first, size).to(dtype) : at::Tensor()};
  }

  // The places of targets among the words, [n, 1], and whether one is there.
  std::pair<at::Tensor, at::Tensor> targets(const Words& of_words, std::int64_t first) const {
    const at::Tensor place = of(index, first).sub(of_words.first).unsqueeze(1);
    const at::Tensor is_there = place.ge(0).logical_and(place.lt(of_words.count));
    return {place.clamp(0, of_words.count - 1), is_there};
  }

  at::Tensor logits(const Words& of_words, std::int64_t first) const {
    if (factors == dtype) {
      return at::linear(inputs(first), of_words.weight, of_words.bias);
    }
    const at::Tensor products = product(inputs(first), of_words.weight.t(), dtype);
    return of_words.bias.defined() ? products + of_words.bias : products;
  }

  // Gradients of logits as factors: rounded to the inputs' dtype, whoever multiplies.
  at::Tensor factor(const at::Tensor& of_logits) const {
    return of_logits.to(x.scalar_type()).to(factors);
  }

  const LinearCrossEntropyProblem& problem;
  at::ScalarType dtype;    // of sums
  at::ScalarType factors;  // of what is multiplied
  std::int64_t vocab_size;
  at::Tensor x;
  at::Tensor counted;
  at::Tensor refused;  // targets outside of the vocabulary, on a GPU
  at::Tensor index;    // 0 where no target counts
  std::int64_t step;
};

// Sums of products of a gradient: the gradient itself where it has the dtype of sums, else memory
// that is rounded to it in the end.
class Sums {
 public:
  Sums(const at::Tensor& gradient, at::ScalarType dtype)
      : gradient_(gradient),
        sums_(gradient.scalar_type() == dtype
                  ? gradient.zero_()
                  : at::zeros(gradient.sizes(), gradient.options().dtype(dtype))) {}

  const at::Tensor& sums() const { return sums_; }

  // The sums times `unit`, if it is defined.
  void finish(const at::Tensor& unit) const {
    if (unit.defined()) {
      sums_.mul_(unit);
    }
    if (!sums_.is_same(gradient_)) {
      gradient_.copy_(sums_);
    }
  }

 private:
  at::Tensor gradient_;
  at::Tensor sums_;
};

// Of the logits of a chunk: scale (1 + 2 z lse) p, and at the target - scale.
at::Tensor gradient_of_logits(const Rows& rows, const Words& words, std::int64_t first,
                              const at::Tensor& lse, const at::Tensor& scale) {
  const at::Tensor of_lse = rows.of(lse, first).unsqueeze(1);
  const at::Tensor factor = rows.of(scale, first);
  const auto [place, is_there] = rows.targets(words, first);
  at::Tensor logits = rows.logits(words, first).sub_(of_lse).exp_();
  logits.mul_(factor * (1.0 + 2.0 * rows.problem.z_loss * of_lse));
  return logits.scatter_add_(1, place, at::where(is_there, -factor, 0.0));
}

// sums += x y; of factors in their dtype in one operation.
void add_product(const at::Tensor& sums, const at::Tensor& x, const at::Tensor& y) {
  if (x.scalar_type() == sums.scalar_type()) {
    sums.addmm_(x, y);
  } else {
    sums.add_(product(x, y, sums.scalar_type()));
  }
}

}  // namespace

std::tuple<at::Tensor, at::Tensor> forward(const LinearCrossEntropyProblem& problem) {
  const autocast::Off guard;
  const Rows rows(problem);
  const at::Tensor lse =
      at::full({rows.count()}, -std::numeric_limits<double>::infinity(), rows.sums());
  const at::Tensor of_target = at::zeros({rows.count()}, rows.sums());
  for (std::int64_t word = 0; word < rows.vocab_size; word += kChunkWords) {
    const Words words = rows.words(word);
    for (std::int64_t first = 0; first < rows.count(); first += rows.step) {
      const at::Tensor logits = rows.logits(words, first);
      const auto [place, is_there] = rows.targets(words, first);
      const at::Tensor here = rows.of(lse, first);
      here.copy_(at::logaddexp(here, at::logsumexp(logits, {1})));
      rows.of(of_target, first).add_(at::where(is_there, logits.gather(1, place), 0.0).squeeze(1));
    }
  }
  const at::Tensor loss = at::where(rows.counted, lse - of_target + problem.z_loss * lse * lse,
                                    at::zeros({}, rows.sums()))
                              .masked_fill_(rows.refused, kNan);
  if (problem.reduction == Reduction::kNone) {
    return {loss.reshape(problem.target.sizes()), lse};
  }
  const at::Tensor sum = loss.sum();
  return {problem.reduction == Reduction::kMean ? sum / rows.counted.sum() : sum, lse};
}

void backward(const LinearCrossEntropyProblem& problem, const at::Tensor& grad_loss,
              const at::Tensor& lse, const std::array<bool, 3>& wanted,
              const std::tuple<at::Tensor, at::Tensor, at::Tensor>& gradients) {
  const autocast::Off guard;
  const Rows rows(problem);
  at::Tensor scale = grad_loss.reshape({-1}).expand({rows.count()});
  if (problem.reduction == Reduction::kMean) {
    scale = scale / rows.counted.sum();
  }
  scale = at::where(rows.counted, scale, at::zeros({}, rows.sums()))
              .masked_fill_(rows.refused, kNan)
              .unsqueeze(1);
  // Of the gradients of half types, so that float16 holds them: a power of two, which rounds
  // nothing.
  at::Tensor unit;
  if (rows.is_half() && rows.count() > 0) {
    const at::Tensor largest = scale.abs().amax();
    unit = at::where(largest > 0, largest, at::ones({}, rows.sums())).log2_().floor_().exp2_();
    scale = scale / unit;
  }
  const auto& [grad_x, grad_weight, grad_bias] = gradients;
  const Sums of_x(wanted[0] ? grad_x.view(rows.x.sizes()) : grad_x, rows.dtype);
  for (std::int64_t word = 0; word < rows.vocab_size; word += kChunkWords) {
    const Words words = rows.words(word);
    const auto of_words = [&](const at::Tensor& x, bool is_wanted) {
      return Sums(is_wanted ? x.narrow(0, words.first, words.count) : x, rows.dtype);
    };
    const Sums of_weight = of_words(grad_weight, wanted[1]);
    const Sums of_bias = of_words(grad_bias, wanted[2] && problem.bias.has_value());
    for (std::int64_t first = 0; first < rows.count(); first += rows.step) {
      const at::Tensor of_logits = gradient_of_logits(rows, words, first, lse, scale);
      if (wanted[2] && problem.bias.has_value()) {
        of_bias.sums().add_(of_logits.sum(0));
      }
      const at::Tensor factor = rows.factor(of_logits);
      if (wanted[0]) {
        add_product(rows.of(of_x.sums(), first), factor, words.weight);
      }
      if (wanted[1]) {
        add_product(of_weight.sums(), factor.t(), rows.inputs(first));
      }
    }
    of_weight.finish(unit);
    of_bias.finish(unit);
  }
  of_x.finish(unit);
}

}  // namespace paperlab::ops::eager
