#include "tests/support/group_pool_exact.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <sstream>

#include "paperlab/core/rng.h"
#include "tests/support/row_tensor.h"

namespace paperlab::test {
namespace {

using kernels::DType;
using kernels::PoolKind;
using Real = long double;

// An element's value and the sum of its terms' absolute values.
struct Sum {
  Real value = 0;
  Real norm = 0;
  void add(Real factor, Real norm_of_factor, Real x) {
    value += factor * x;
    norm += norm_of_factor * std::abs(x);
  }
};

struct Sums {
  explicit Sums(const GuardedTensor& like)
      : tensor(&like), sums(static_cast<std::size_t>(like.num_elements())) {}
  Sum& at(std::int64_t b, std::int64_t h, std::int64_t t, std::int64_t d) {
    return sums[static_cast<std::size_t>(
        ((b * tensor->size(1) + h) * tensor->size(2) + t) * tensor->size(3) + d)];
  }
  const GuardedTensor* tensor;
  std::vector<Sum> sums;
};

// Textbook pooling of all groups of a case.
class Definition {
 public:
  explicit Definition(const PoolTensors& tensors)
      : in(tensors),
        core_key(in.core_key),
        core_value(in.core_value),
        grad_query(in.grad_query),
        grad_key(in.grad_key),
        grad_value(in.grad_value) {
    for (std::int64_t b = 0; b < in.of.batch; ++b) {
      for (std::int64_t p = 0; p < in.core_key.size(1); ++p) {
        for (std::int64_t c = 0; c < in.groups(b); ++c) {
          pool(b, p, c);
        }
      }
    }
  }

  const PoolTensors& in;
  Sums core_key, core_value, grad_query, grad_key, grad_value;
  Real largest_logit = 0;

 private:
  void pool(std::int64_t b, std::int64_t p, std::int64_t c) {
    const std::int64_t kv = p / (in.core_key.size(1) / in.of.num_kv_heads);
    const std::int64_t first = in.start(b) + c * in.of.group;
    if (in.of.kind == PoolKind::kMax) {
      take_maxima(b, kv, p, c, first);
      return;
    }
    weigh(b, p, kv, first);
    for (std::int64_t d = 0; d < in.of.head_dim; ++d) {
      for (std::int64_t n = 0; n < in.of.group; ++n) {
        const Real w = weights_[static_cast<std::size_t>(n)];
        core_key.at(b, p, c, d).add(w, w, in.key.get(b, kv, first + n, d));
        core_value.at(b, p, c, d).add(w, w, in.value.get(b, kv, first + n, d));
      }
    }
    differentiate(b, p, c, kv, first);
  }

  void take_maxima(std::int64_t b, std::int64_t kv, std::int64_t p, std::int64_t c,
                   std::int64_t first) {
    for (std::int64_t d = 0; d < in.of.head_dim; ++d) {
      std::int64_t best_key = first;
      std::int64_t best_value = first;
      for (std::int64_t t = first + 1; t < first + in.of.group; ++t) {
        best_key = in.key.get(b, kv, t, d) > in.key.get(b, kv, best_key, d) ? t : best_key;
        best_value =
            in.value.get(b, kv, t, d) > in.value.get(b, kv, best_value, d) ? t : best_value;
      }
      core_key.at(b, p, c, d).value = in.key.get(b, kv, best_key, d);
      core_value.at(b, p, c, d).value = in.value.get(b, kv, best_value, d);
      grad_key.at(b, kv, best_key, d).add(1, 0, in.grad_core_key.get(b, p, c, d));
      grad_value.at(b, kv, best_value, d).add(1, 0, in.grad_core_value.get(b, p, c, d));
    }
  }

  // The evaluator is the mean of the query heads from p share_ on.
  void weigh(std::int64_t b, std::int64_t p, std::int64_t kv, std::int64_t first) {
    weights_.assign(static_cast<std::size_t>(in.of.group),
                    Real{1} / static_cast<Real>(in.of.group));
    if (in.of.kind == PoolKind::kMean) {
      return;
    }
    share_ = in.of.num_heads / in.core_key.size(1);
    evaluator_row_ = first + in.of.group - 1 - (in.of.num_tokens - in.of.num_queries);
    evaluator_.assign(static_cast<std::size_t>(in.of.head_dim), Sum());
    std::vector<Sum> logits(weights_.size());
    for (std::int64_t d = 0; d < in.of.head_dim; ++d) {
      Sum& q = evaluator_[static_cast<std::size_t>(d)];
      for (std::int64_t h = p * share_; h < (p + 1) * share_; ++h) {
        q.add(Real{1} / static_cast<Real>(share_), Real{1} / static_cast<Real>(share_),
              in.query.get(b, h, evaluator_row_, d));
      }
      for (std::size_t n = 0; n < logits.size(); ++n) {
        logits[n].add(scale() * q.value, scale() * q.norm,
                      in.key.get(b, kv, first + static_cast<std::int64_t>(n), d));
      }
    }
    Real most = logits[0].value;
    for (const Sum& logit : logits) {
      most = std::max(most, logit.value);
      largest_logit = std::max(largest_logit, logit.norm);
    }
    Real sum = 0;
    for (std::size_t n = 0; n < logits.size(); ++n) {
      weights_[n] = std::exp(logits[n].value - most);
      sum += weights_[n];
    }
    for (Real& w : weights_) {
      w /= sum;
    }
  }

  void differentiate(std::int64_t b, std::int64_t p, std::int64_t c, std::int64_t kv,
                     std::int64_t first) {
    std::vector<Sum> of_weights(weights_.size());
    Sum mean;
    for (std::size_t n = 0; n < weights_.size(); ++n) {
      const std::int64_t t = first + static_cast<std::int64_t>(n);
      for (std::int64_t d = 0; d < in.of.head_dim; ++d) {
        const Real of_key = in.grad_core_key.get(b, p, c, d);
        const Real of_value = in.grad_core_value.get(b, p, c, d);
        of_weights[n].add(of_key, std::abs(of_key), in.key.get(b, kv, t, d));
        of_weights[n].add(of_value, std::abs(of_value), in.value.get(b, kv, t, d));
        grad_key.at(b, kv, t, d).add(weights_[n], weights_[n], of_key);
        grad_value.at(b, kv, t, d).add(weights_[n], weights_[n], of_value);
      }
      mean.value += weights_[n] * of_weights[n].value;
      mean.norm += weights_[n] * of_weights[n].norm;
    }
    if (in.of.kind == PoolKind::kMean) {
      return;
    }
    for (std::size_t n = 0; n < weights_.size(); ++n) {
      const std::int64_t t = first + static_cast<std::int64_t>(n);
      const Real grad = scale() * weights_[n] * (of_weights[n].value - mean.value);
      const Real norm = scale() * weights_[n] * (of_weights[n].norm + mean.norm);
      const auto of_each = static_cast<Real>(share_);
      for (std::int64_t d = 0; d < in.of.head_dim; ++d) {
        const Sum& q = evaluator_[static_cast<std::size_t>(d)];
        Sum& key = grad_key.at(b, kv, t, d);
        key.value += grad * q.value;
        key.norm += norm * q.norm;
        for (std::int64_t h = p * share_; h < (p + 1) * share_; ++h) {
          grad_query.at(b, h, evaluator_row_, d)
              .add(grad / of_each, norm / of_each, in.key.get(b, kv, t, d));
        }
      }
    }
  }

  Real scale() const { return in.inputs().scale; }

  std::vector<Real> weights_;
  std::vector<Sum> evaluator_;
  std::int64_t share_ = 1;
  std::int64_t evaluator_row_ = 0;
};

testing::AssertionResult is_within(const char* name, const Sums& expected, const PoolCase& of,
                                   Real largest_logit) {
  const GuardedTensor& actual = *expected.tensor;
  if (!actual.has_untouched_gaps()) {
    return testing::AssertionFailure() << name << ": memory around the elements was written";
  }
  const Real eps = epsilon(of.dtype);
  const Real terms = static_cast<Real>(2 * of.head_dim + of.group + 16) +
                     4 * static_cast<Real>(of.head_dim + 4) * largest_logit;
  const std::vector<double> got = actual.values();
  for (std::size_t i = 0; i < got.size(); ++i) {
    const Sum& exact = expected.sums[i];
    const Real half_ulp = test::half_ulp(of.dtype) * std::abs(exact.value) + half_step(of.dtype);
    const Real error = std::abs(static_cast<Real>(got[i]) - exact.value);
    if (!(error <= half_ulp + eps * exact.norm * terms)) {
      const auto [b, h, t, d] = actual.index_of(static_cast<std::int64_t>(i));
      return testing::AssertionFailure()
             << name << "[" << b << ", " << h << ", " << t << ", " << d << "]: got " << got[i]
             << ", exact " << static_cast<double>(exact.value) << ", norm "
             << static_cast<double>(exact.norm) << "\n  " << text_of(of);
    }
  }
  return testing::AssertionSuccess();
}

void fill_with_normals(GuardedTensor& tensor, std::uint64_t seed, std::uint64_t stream,
                       double deviation) {
  std::vector<double> normals =
      philox_normals(seed, stream, static_cast<std::uint64_t>(tensor.num_elements()));
  for (double& x : normals) {
    x *= deviation;
  }
  tensor.set_values(normals);
}

}  // namespace

PoolCase random_pool_case(std::uint64_t seed) {
  std::uint64_t next = 0;
  const auto between = [&](std::int64_t from, std::int64_t to) {
    const double width = static_cast<double>(to - from + 1);
    return from + static_cast<std::int64_t>(philox_uniform(seed, 98, next++) * width);
  };
  PoolCase of;
  of.seed = seed;
  of.batch = between(0, 9) == 0 ? 0 : between(1, 3);
  of.num_kv_heads = between(1, 3);
  of.num_heads = of.num_kv_heads * between(1, 3);
  of.group = between(0, 3) == 0 ? between(1, 70) : between(1, 20);
  of.first = between(0, 1) == 0 ? 0 : between(0, 12);
  of.num_tokens = between(0, 3 * of.group + 14);
  of.head_dim = between(0, 4) == 0 ? between(60, 140) : between(1, 40);
  of.has_start = between(0, 2) == 0;
  of.num_queries =
      between(0, 1) == 0 ? of.num_tokens : std::max<std::int64_t>(0, of.num_tokens - of.first);
  of.num_left_out = between(0, 5) == 0 ? 1 : 0;
  of.per_kv_head = between(0, 1) == 0;
  constexpr std::array kKinds = {PoolKind::kAttention, PoolKind::kAttention, PoolKind::kMean,
                                 PoolKind::kMax};
  constexpr std::array kDTypes = {DType::kFloat32, DType::kFloat32, DType::kBFloat16,
                                  DType::kFloat64};
  of.kind = kKinds[static_cast<std::size_t>(between(0, 3))];
  of.dtype = kDTypes[static_cast<std::size_t>(between(0, 3))];
  of.layout = static_cast<AttentionLayout>(between(0, 2));
  of.offset = between(0, 2) == 0 ? between(1, 15) : 0;
  return of;
}

std::string text_of(const PoolCase& of) {
  std::ostringstream text;
  text << "batch " << of.batch << ", heads " << of.num_heads << " / " << of.num_kv_heads
       << ", tokens " << of.num_tokens << ", queries " << of.num_queries << ", head_dim "
       << of.head_dim << ", group " << of.group << ", first " << of.first << ", left out "
       << of.num_left_out << ", start " << of.has_start << ", per kv head " << of.per_kv_head
       << ", kind " << static_cast<int>(of.kind) << ", " << name_of(of.dtype) << ", layout "
       << static_cast<int>(of.layout) << ", offset " << of.offset << ", seed " << of.seed;
  return text.str();
}

PoolTensors::PoolTensors(const PoolCase& of_case) : of(of_case) {
  using Size = std::array<std::int64_t, 4>;
  const bool has_query = of.kind == PoolKind::kAttention;
  const std::int64_t pooled = has_query && !of.per_kv_head ? of.num_heads : of.num_kv_heads;
  const std::int64_t most = kernels::num_groups(of.num_tokens, of.first, of.group);
  const Size core = {of.batch, pooled, std::max<std::int64_t>(0, most - of.num_left_out),
                     of.head_dim};
  const Size keys = {of.batch, of.num_kv_heads, of.num_tokens, of.head_dim};
  const Size queries = {of.batch, of.num_heads, of.num_queries, of.head_dim};
  const auto make = [&](const Size& size, GuardedTensor::Use use) {
    return GuardedTensor(of.dtype, size, of.layout, of.offset, use);
  };
  std::uint64_t stream = 0;
  for (GuardedTensor* tensor : {&key, &value}) {
    *tensor = make(keys, GuardedTensor::Use::kInput);
    fill_with_normals(*tensor, of.seed, stream++, tensor == &key ? of.magnitude : 1.0);
  }
  for (GuardedTensor* tensor : {&grad_core_key, &grad_core_value}) {
    *tensor = make(core, GuardedTensor::Use::kInput);
    fill_with_normals(*tensor, of.seed, stream++, 1.0);
  }
  core_key = make(core, GuardedTensor::Use::kOutput);
  core_value = make(core, GuardedTensor::Use::kOutput);
  grad_key = make(keys, GuardedTensor::Use::kOutput);
  grad_value = make(keys, GuardedTensor::Use::kOutput);
  if (has_query) {
    query = make(queries, GuardedTensor::Use::kInput);
    fill_with_normals(query, of.seed, stream++, of.magnitude);
    grad_query = make(queries, GuardedTensor::Use::kOutput);
  }
  for (std::int64_t b = 0; of.has_start && b < of.batch; ++b) {
    starts.push_back(b % 3 == 2 ? of.num_tokens : (b * 5 + 1) % (of.num_tokens + 1));
  }
  const double nan = std::numeric_limits<double>::quiet_NaN();
  for (std::int64_t i = 0; i < key.num_elements(); ++i) {
    const auto [b, h, t, d] = key.index_of(i);
    if (t < start(b) || t >= start(b) + groups(b) * of.group) {
      key.set(b, h, t, d, nan);
      value.set(b, h, t, d, nan);
    }
  }
  for (std::int64_t i = 0; i < query.num_elements(); ++i) {
    const auto [b, h, t, d] = query.index_of(i);
    const std::int64_t token = t + of.num_tokens - of.num_queries - start(b);
    if (token < 0 || token >= groups(b) * of.group || token % of.group != of.group - 1) {
      query.set(b, h, t, d, nan);
    }
  }
}

std::int64_t PoolTensors::start(std::int64_t b) const {
  return of.first + (starts.empty() ? 0 : starts[static_cast<std::size_t>(b)]);
}

std::int64_t PoolTensors::groups(std::int64_t b) const {
  std::int64_t count = 0;
  while (count < core_key.size(2) && start(b) + (count + 1) * of.group <= of.num_tokens) {
    ++count;
  }
  return count;
}

kernels::GroupPoolInputs PoolTensors::inputs() const {
  kernels::GroupPoolInputs inputs;
  inputs.query = query.view();
  inputs.key = key.view();
  inputs.value = value.view();
  inputs.start = starts.empty() ? nullptr : starts.data();
  inputs.first = of.first;
  inputs.group = of.group;
  inputs.kind = of.kind;
  inputs.scale = 1.0 / std::sqrt(static_cast<double>(of.head_dim));
  return inputs;
}

kernels::GroupPoolOutputs PoolTensors::outputs() {
  core_key.fill_with_nan();
  core_value.fill_with_nan();
  return {core_key.view(), core_value.view()};
}

kernels::GroupPoolGradients PoolTensors::gradients() {
  for (GuardedTensor* tensor : {&grad_query, &grad_key, &grad_value}) {
    if (!tensor->is_absent()) {
      tensor->fill_with_nan();
    }
  }
  const auto as_const = [](const GuardedTensor& tensor) { return tensor.view(); };
  return {as_const(grad_core_key), as_const(grad_core_value), grad_query.view(), grad_key.view(),
          grad_value.view()};
}

std::vector<const GuardedTensor*> PoolTensors::results() const { return {&core_key, &core_value}; }

std::vector<const GuardedTensor*> PoolTensors::gradient_results() const {
  std::vector<const GuardedTensor*> all = {&grad_key, &grad_value};
  if (!grad_query.is_absent()) {
    all.push_back(&grad_query);
  }
  return all;
}

testing::AssertionResult is_pooled_right(PoolTensors& tensors, const Executor& executor) {
  return is_pooled_right(tensors, [&executor](PoolTensors& of) {
    kernels::group_pool(of.inputs(), of.outputs(), executor);
    kernels::group_pool_backward(of.inputs(), of.gradients(), executor);
  });
}

testing::AssertionResult is_pooled_right(PoolTensors& tensors,
                                         const std::function<void(PoolTensors&)>& run) {
  run(tensors);
  const Definition exact(tensors);
  const auto check = [&](const char* name, const Sums& sums) {
    return is_within(name, sums, tensors.of, exact.largest_logit);
  };
  testing::AssertionResult result = check("core_key", exact.core_key);
  result = result ? check("core_value", exact.core_value) : result;
  result = result ? check("grad_key", exact.grad_key) : result;
  result = result ? check("grad_value", exact.grad_value) : result;
  return result && !tensors.query.is_absent() ? check("grad_query", exact.grad_query) : result;
}

}  // namespace paperlab::test
