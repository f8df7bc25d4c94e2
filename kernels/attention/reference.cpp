// The definition: one row at a time, in float64.
//   s_n = scale q . k_n over the visible keys n, prefix entries first, then raw keys
//   L = log sum_n exp(s_n),  p_n = exp(s_n - L),  o = sum_n p_n v_n
// and with g = dLoss/do, h = dLoss/dL:
//   ds_n = p_n (g . v_n - g . o + h),  dv_n += p_n g,  dk_n += scale ds_n q,  dq = scale sum ds_n
//   k_n

#include <cmath>
#include <cstddef>
#include <limits>
#include <vector>

#include "kernels/attention/attention.h"
#include "kernels/common/number.h"

namespace paperlab::kernels {
namespace {

template <class View>
std::int64_t offset(const View& view, std::int64_t b, std::int64_t h, std::int64_t t,
                    std::int64_t d) {
  return b * view.stride[0] + h * view.stride[1] + t * view.stride[2] + d * view.stride[3];
}

using Row = std::vector<double>;

Row load_row(const ConstTensorView& view, std::int64_t b, std::int64_t h, std::int64_t t) {
  Row row(static_cast<std::size_t>(view.size[3]));
  for (std::size_t d = 0; d < row.size(); ++d) {
    row[d] =
        load_number(view.data, view.dtype, offset(view, b, h, t, static_cast<std::int64_t>(d)));
  }
  return row;
}

void store_row(const TensorView& view, std::int64_t b, std::int64_t h, std::int64_t t,
               const double* row) {
  for (std::int64_t d = 0; d < view.size[3]; ++d) {
    store_number(view.data, view.dtype, offset(view, b, h, t, d), row[d]);
  }
}

double dot(const Row& a, const Row& b) {
  double sum = 0.0;
  for (std::size_t d = 0; d < a.size(); ++d) {
    sum += a[d] * b[d];
  }
  return sum;
}

// The keys that one row sees, prefix entries first.
struct VisibleKey {
  bool is_prefix;
  std::int64_t head;
  std::int64_t index;
};

std::vector<VisibleKey> visible_keys(const AttentionInputs& in, std::int64_t b, std::int64_t h,
                                     std::int64_t t) {
  const std::int64_t num_heads = in.query.size[1];
  const std::int64_t num_keys = in.key.size[2];
  const std::int64_t num_past = in.rule.num_past;
  const VisibleKeys range =
      in.rule.visible(num_past + key_position(t, in.query.size[2], num_keys),
                      in.key_start == nullptr ? 0 : in.key_start[b],
                      in.key_end == nullptr ? num_past + num_keys : in.key_end[b]);
  std::vector<VisibleKey> keys;
  for (std::int64_t n = 0; n < range.prefix_end && in.prefix_key.data != nullptr; ++n) {
    keys.push_back({true, h / (num_heads / in.prefix_key.size[1]), n});
  }
  for (std::int64_t n = range.begin; n < range.end; ++n) {
    keys.push_back({false, h / (num_heads / in.key.size[1]), n});
  }
  return keys;
}

// One row of attention.
struct RowResult {
  Row out;
  double lse;
};

struct RowQueries {
  Row raw;
  Row prefix;
};

RowQueries load_queries(const AttentionInputs& in, std::int64_t b, std::int64_t h, std::int64_t t) {
  RowQueries queries{load_row(in.query, b, h, t), {}};
  queries.prefix =
      in.prefix_query.data == nullptr ? queries.raw : load_row(in.prefix_query, b, h, t);
  return queries;
}

double logit(const AttentionInputs& in, const RowQueries& queries, std::int64_t b,
             const VisibleKey& key) {
  return in.scale * (key.is_prefix
                         ? dot(queries.prefix, load_row(in.prefix_key, b, key.head, key.index))
                         : dot(queries.raw, load_row(in.key, b, key.head, key.index)));
}

Row load_value(const AttentionInputs& in, std::int64_t b, const VisibleKey& key) {
  return load_row(key.is_prefix ? in.prefix_value : in.value, b, key.head, key.index);
}

RowResult attend(const AttentionInputs& in, std::int64_t b, std::int64_t h, std::int64_t t) {
  const std::vector<VisibleKey> keys = visible_keys(in, b, h, t);
  const RowQueries queries = load_queries(in, b, h, t);
  RowResult result{Row(queries.raw.size()), -std::numeric_limits<double>::infinity()};
  if (keys.empty()) {
    return result;
  }
  Row logits;
  for (const VisibleKey& key : keys) {
    logits.push_back(logit(in, queries, b, key));
  }
  double largest = logits[0];
  for (const double x : logits) {
    largest = x > largest || std::isnan(x) ? x : largest;
  }
  double sum = 0.0;
  for (const double x : logits) {
    sum += std::exp(x - largest);
  }
  result.lse = largest + std::log(sum);
  for (std::size_t n = 0; n < keys.size(); ++n) {
    const double p = std::exp(logits[n] - largest) / sum;
    const Row value = load_value(in, b, keys[n]);
    for (std::size_t d = 0; d < value.size(); ++d) {
      result.out[d] += p * value[d];
    }
  }
  return result;
}

// Gradients of one batch row in float64, added up over the query heads and rows.
struct Sums {
  explicit Sums(const ConstTensorView& view)
      : num_rows(view.size[2]),
        width(view.size[3]),
        values(static_cast<std::size_t>(view.size[1] * view.size[2] * view.size[3])) {}

  double* row(std::int64_t head, std::int64_t index) {
    return values.data() + (head * num_rows + index) * width;
  }

  std::int64_t num_rows;
  std::int64_t width;
  Row values;
};

void add(double* sum, double factor, const Row& x) {
  for (std::size_t d = 0; d < x.size(); ++d) {
    sum[d] += factor * x[d];
  }
}

struct BatchSums {
  explicit BatchSums(const AttentionInputs& in)
      : query(in.query),
        key(in.key),
        value(in.value),
        prefix_query(in.prefix_query),
        prefix_key(in.prefix_key),
        prefix_value(in.prefix_value) {}

  Sums query;
  Sums key;
  Sums value;
  Sums prefix_query;
  Sums prefix_key;
  Sums prefix_value;
};

void add_row(const AttentionInputs& in, const AttentionBackwardInputs& forward, std::int64_t b,
             std::int64_t h, std::int64_t t, BatchSums& sums) {
  const DType dtype = statistics_dtype(in.query.dtype);
  const std::int64_t at = (b * in.query.size[1] + h) * in.query.size[2] + t;
  const double lse = load_number(forward.lse, dtype, at);
  const double grad_lse =
      forward.grad_lse == nullptr ? 0.0 : load_number(forward.grad_lse, dtype, at);
  const Row grad_out = load_row(forward.grad_out, b, h, t);
  const double delta = dot(grad_out, load_row(forward.out, b, h, t)) - grad_lse;
  const RowQueries queries = load_queries(in, b, h, t);
  Sums& prefix_query = in.prefix_query.data == nullptr ? sums.query : sums.prefix_query;
  for (const VisibleKey& key : visible_keys(in, b, h, t)) {
    const double p = std::exp(logit(in, queries, b, key) - lse);
    const double ds = in.scale * p * (dot(grad_out, load_value(in, b, key)) - delta);
    if (key.is_prefix) {
      add(sums.prefix_value.row(key.head, key.index), p, grad_out);
      add(sums.prefix_key.row(key.head, key.index), ds, queries.prefix);
      add(prefix_query.row(h, t), ds, load_row(in.prefix_key, b, key.head, key.index));
    } else {
      add(sums.value.row(key.head, key.index), p, grad_out);
      add(sums.key.row(key.head, key.index), ds, queries.raw);
      add(sums.query.row(h, t), ds, load_row(in.key, b, key.head, key.index));
    }
  }
}

void store_sums(const TensorView& view, std::int64_t b, Sums& sums) {
  for (std::int64_t h = 0; view.data != nullptr && h < view.size[1]; ++h) {
    for (std::int64_t t = 0; t < view.size[2]; ++t) {
      store_row(view, b, h, t, sums.row(h, t));
    }
  }
}

}  // namespace

void attention_reference(const AttentionInputs& inputs, const AttentionOutputs& outputs) {
  const std::int64_t num_heads = inputs.query.size[1];
  const std::int64_t num_queries = inputs.query.size[2];
  for (std::int64_t b = 0; b < inputs.query.size[0]; ++b) {
    for (std::int64_t h = 0; h < num_heads; ++h) {
      for (std::int64_t t = 0; t < num_queries; ++t) {
        const RowResult row = attend(inputs, b, h, t);
        store_row(outputs.out, b, h, t, row.out.data());
        store_number(outputs.lse, statistics_dtype(inputs.query.dtype),
                     (b * num_heads + h) * num_queries + t, row.lse);
      }
    }
  }
}

void attention_backward_reference(const AttentionInputs& inputs,
                                  const AttentionBackwardInputs& forward,
                                  const AttentionGradients& gradients) {
  for (std::int64_t b = 0; b < inputs.query.size[0]; ++b) {
    BatchSums sums(inputs);
    for (std::int64_t h = 0; h < inputs.query.size[1]; ++h) {
      for (std::int64_t t = 0; t < inputs.query.size[2]; ++t) {
        add_row(inputs, forward, b, h, t, sums);
      }
    }
    store_sums(gradients.query, b, sums.query);
    store_sums(gradients.key, b, sums.key);
    store_sums(gradients.value, b, sums.value);
    store_sums(gradients.prefix_query, b, sums.prefix_query);
    store_sums(gradients.prefix_key, b, sums.prefix_key);
    store_sums(gradients.prefix_value, b, sums.prefix_value);
  }
}

}  // namespace paperlab::kernels
