// The definition: one pooled head of one group at a time, in float64. With dw_t = dk^G . k_t +
// dv^G . v_t: da_t = scale w_t (dw_t - sum_u w_u dw_u), dk_t = w_t dk^G + da_t q, dv_t = w_t dv^G,
// dq = sum_t da_t k_t.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <vector>

#include "kernels/common/number.h"
#include "kernels/group_pool/group_pool.h"
#include "kernels/group_pool/layout.h"

namespace paperlab::kernels {
namespace {

using Row = std::vector<double>;

template <class View>
std::int64_t offset(const View& view, std::int64_t b, std::int64_t h, std::int64_t t,
                    std::int64_t d) {
  return b * view.stride[0] + h * view.stride[1] + t * view.stride[2] + d * view.stride[3];
}

Row load_row(const ConstTensorView& view, std::int64_t b, std::int64_t h, std::int64_t t) {
  Row row(static_cast<std::size_t>(view.size[3]));
  for (std::size_t d = 0; d < row.size(); ++d) {
    row[d] =
        load_number(view.data, view.dtype, offset(view, b, h, t, static_cast<std::int64_t>(d)));
  }
  return row;
}

void store_row(const TensorView& view, std::int64_t b, std::int64_t h, std::int64_t t,
               const Row& row) {
  for (std::int64_t d = 0; d < view.size[3]; ++d) {
    store_number(view.data, view.dtype, offset(view, b, h, t, d), row[static_cast<std::size_t>(d)]);
  }
}

double dot(const Row& a, const Row& b) {
  double sum = 0.0;
  for (std::size_t d = 0; d < a.size(); ++d) {
    sum += a[d] * b[d];
  }
  return sum;
}

void add(Row& sum, double factor, const Row& x) {
  for (std::size_t d = 0; d < x.size(); ++d) {
    sum[d] += factor * x[d];
  }
}

// A pooled head of a complete group.
struct Group {
  std::int64_t b;
  std::int64_t key_head;
  std::int64_t pooled;
  std::int64_t number;
  std::int64_t first;  // token
};

// Calls body(group, is_complete) for every element of [B, P, m].
template <class F>
void for_groups(const GroupPoolInputs& in, const PoolLayout& layout, F body) {
  for (std::int64_t b = 0; b < layout.batch; ++b) {
    const std::int64_t start = in.first + (in.start == nullptr ? 0 : in.start[b]);
    for (std::int64_t p = 0; p < layout.key_heads * layout.pooled_share; ++p) {
      for (std::int64_t c = 0; c < layout.groups; ++c) {
        body(Group{b, p / layout.pooled_share, p, c, start + c * layout.group},
             c < layout.complete(start));
      }
    }
  }
}

std::vector<Row> rows_of(const ConstTensorView& view, const Group& group, std::int64_t count) {
  std::vector<Row> rows;
  rows.reserve(static_cast<std::size_t>(count));
  for (std::int64_t n = 0; n < count; ++n) {
    rows.push_back(load_row(view, group.b, group.key_head, group.first + n));
  }
  return rows;
}

// The query heads whose mean evaluates a group: first, and how many.
struct Evaluators {
  std::int64_t first;
  std::int64_t count;
  std::int64_t query;
};

Evaluators evaluators_of(const PoolLayout& layout, const Group& group) {
  const std::int64_t count = layout.query_share / layout.pooled_share;
  return {group.pooled * count, count, layout.query_of(group.first + layout.group - 1)};
}

Row evaluator(const GroupPoolInputs& in, const PoolLayout& layout, const Group& group) {
  const Evaluators from = evaluators_of(layout, group);
  Row mean(static_cast<std::size_t>(layout.head_dim));
  for (std::int64_t h = 0; h < from.count; ++h) {
    add(mean, 1.0 / static_cast<double>(from.count),
        load_row(in.query, group.b, from.first + h, from.query));
  }
  return mean;
}

Row softmax(Row logits) {
  const double largest = *std::max_element(logits.begin(), logits.end());
  double sum = 0.0;
  for (double& x : logits) {
    x = std::exp(x - largest);
    sum += x;
  }
  for (double& x : logits) {
    x /= sum;
  }
  return logits;
}

// kAttention and kMean.
Row weights_of(const GroupPoolInputs& in, const PoolLayout& layout, const Group& group,
               const std::vector<Row>& keys) {
  if (in.kind == PoolKind::kMean) {
    return Row(keys.size(), 1.0 / static_cast<double>(keys.size()));
  }
  const Row query = evaluator(in, layout, group);
  Row logits;
  for (const Row& key : keys) {
    logits.push_back(in.scale * dot(query, key));
  }
  return softmax(logits);
}

// The token that has the maximum of channel d: the first, or the first NaN.
std::size_t arg_max(const std::vector<Row>& rows, std::size_t d) {
  std::size_t best = 0;
  for (std::size_t n = 1; n < rows.size() && !std::isnan(rows[best][d]); ++n) {
    best = rows[n][d] > rows[best][d] || std::isnan(rows[n][d]) ? n : best;
  }
  return best;
}

Row pooled(const GroupPoolInputs& in, const std::vector<Row>& rows, const Row& weights) {
  Row sum(rows[0].size());
  if (in.kind == PoolKind::kMax) {
    for (std::size_t d = 0; d < sum.size(); ++d) {
      sum[d] = rows[arg_max(rows, d)][d];
    }
    return sum;
  }
  for (std::size_t n = 0; n < rows.size(); ++n) {
    add(sum, weights[n], rows[n]);
  }
  return sum;
}

// Gradients of one tensor [.., .., .., D] in float64, added up over groups.
struct Sums {
  explicit Sums(const TensorView& of) : view(of) {
    values.resize(static_cast<std::size_t>(of.size[0] * of.size[1] * of.size[2]),
                  Row(static_cast<std::size_t>(of.size[3])));
  }
  Row& row(std::int64_t b, std::int64_t h, std::int64_t t) {
    return values[static_cast<std::size_t>((b * view.size[1] + h) * view.size[2] + t)];
  }
  void store() {
    for (std::int64_t b = 0; view.data != nullptr && b < view.size[0]; ++b) {
      for (std::int64_t h = 0; h < view.size[1]; ++h) {
        for (std::int64_t t = 0; t < view.size[2]; ++t) {
          store_row(view, b, h, t, row(b, h, t));
        }
      }
    }
  }

  TensorView view;
  std::vector<Row> values;
};

struct AllSums {
  Sums query;
  Sums key;
  Sums value;
};

void add_maxima(const std::vector<Row>& rows, const Row& grad, const Group& group, Sums& sums) {
  for (std::size_t d = 0; d < grad.size(); ++d) {
    const auto at = static_cast<std::int64_t>(arg_max(rows, d));
    sums.row(group.b, group.key_head, group.first + at)[d] += grad[d];
  }
}

void add_group(const GroupPoolInputs& in, const PoolLayout& layout, const Group& group,
               const GroupPoolGradients& gradients, AllSums& sums) {
  const std::vector<Row> keys = rows_of(in.key, group, layout.group);
  const std::vector<Row> values = rows_of(in.value, group, layout.group);
  const Row grad_key = load_row(gradients.grad_key, group.b, group.pooled, group.number);
  const Row grad_value = load_row(gradients.grad_value, group.b, group.pooled, group.number);
  if (in.kind == PoolKind::kMax) {
    add_maxima(keys, grad_key, group, sums.key);
    add_maxima(values, grad_value, group, sums.value);
    return;
  }
  const Row weights = weights_of(in, layout, group, keys);
  Row grad_weights;
  for (std::size_t n = 0; n < keys.size(); ++n) {
    grad_weights.push_back(dot(grad_key, keys[n]) + dot(grad_value, values[n]));
  }
  const double mean = dot(weights, grad_weights);
  const bool has_evaluator = in.kind == PoolKind::kAttention;
  const Row query = has_evaluator ? evaluator(in, layout, group) : Row();
  for (std::size_t n = 0; n < keys.size(); ++n) {
    const std::int64_t t = group.first + static_cast<std::int64_t>(n);
    add(sums.key.row(group.b, group.key_head, t), weights[n], grad_key);
    add(sums.value.row(group.b, group.key_head, t), weights[n], grad_value);
    const double grad_logit = in.scale * weights[n] * (grad_weights[n] - mean);
    if (has_evaluator) {
      add(sums.key.row(group.b, group.key_head, t), grad_logit, query);
      const Evaluators from = evaluators_of(layout, group);
      for (std::int64_t h = 0; h < from.count; ++h) {
        add(sums.query.row(group.b, from.first + h, from.query),
            grad_logit / static_cast<double>(from.count), keys[n]);
      }
    }
  }
}

}  // namespace

void group_pool_reference(const GroupPoolInputs& inputs, const GroupPoolOutputs& outputs) {
  const PoolLayout layout = pool_layout(inputs, outputs.key.size[1], outputs.key.size[2]);
  for_groups(inputs, layout, [&](const Group& group, bool is_complete) {
    Row key(static_cast<std::size_t>(layout.head_dim));
    Row value = key;
    if (is_complete) {
      const std::vector<Row> keys = rows_of(inputs.key, group, layout.group);
      const Row weights =
          inputs.kind == PoolKind::kMax ? Row() : weights_of(inputs, layout, group, keys);
      key = pooled(inputs, keys, weights);
      value = pooled(inputs, rows_of(inputs.value, group, layout.group), weights);
    }
    store_row(outputs.key, group.b, group.pooled, group.number, key);
    store_row(outputs.value, group.b, group.pooled, group.number, value);
  });
}

void group_pool_backward_reference(const GroupPoolInputs& inputs,
                                   const GroupPoolGradients& gradients) {
  const PoolLayout layout =
      pool_layout(inputs, gradients.grad_key.size[1], gradients.grad_key.size[2]);
  AllSums sums = {Sums(gradients.query), Sums(gradients.key), Sums(gradients.value)};
  for_groups(inputs, layout, [&](const Group& group, bool is_complete) {
    if (is_complete) {
      add_group(inputs, layout, group, gradients, sums);
    }
  });
  sums.query.store();
  sums.key.store();
  sums.value.store();
}

}  // namespace paperlab::kernels
