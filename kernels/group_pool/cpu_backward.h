#pragma once
// Gradients of pooling. With dw_u = dk^G . k_u + dv^G . v_u,
//   da_u = scale w_u (dw_u - sum_x w_x dw_x),
//   dk_u = w_u dk^G + da_u q,  dv_u = w_u dv^G,  dq = sum_u da_u k_u,
// summed over the pooled heads of a key head in order. Include only from cpu.cpp.

#include "kernels/group_pool/cpu_group.h"

namespace paperlab::kernels::PAPERLAB_ISA {
namespace {

// Where a group's pieces lie in scratch memory.
struct BackwardScratch {
  BackwardScratch(const PoolLayout& layout, float* memory)
      : evaluator(memory),
        weights(evaluator + padded_lanes(layout.head_dim)),
        grad_weights(weights + padded_lanes(layout.group)),
        of_values(grad_weights + padded_lanes(layout.group)),
        grad_core_key(of_values + padded_lanes(layout.group)),
        grad_core_value(grad_core_key + padded_lanes(layout.head_dim)),
        grad_query(grad_core_value + padded_lanes(layout.head_dim)),
        grad_key(grad_query + padded_lanes(layout.head_dim)),
        grad_value(grad_key + layout.group * padded_lanes(layout.head_dim)) {}

  float* evaluator;
  float* weights;
  float* grad_weights;  // then of the logits, times the scale
  float* of_values;
  float* grad_core_key;
  float* grad_core_value;
  float* grad_query;
  float* grad_key;  // [group][padded head_dim]
  float* grad_value;
};

// Gradients of weights to those of logits, times the scale: in place.
inline void to_grad_logits(std::int64_t count, float scale, const BackwardScratch& at) {
  VecF sums = zero();
  for (std::int64_t n = count; n % kFloatLanes != 0; ++n) {  // weights are 0 there
    at.grad_weights[n] = 0.0F;
    at.of_values[n] = 0.0F;
  }
  for (std::int64_t n = 0; n < count; n += kFloatLanes) {
    const VecF grad = load(at.grad_weights + n) + load(at.of_values + n);
    store(at.grad_weights + n, grad);
    sums = fma(load(at.weights + n), grad, sums);
  }
  const float mean = fold_lanes(sums, [](VecF a, VecF b) { return a + b; });
  for (std::int64_t n = 0; n < count; n += kFloatLanes) {
    const VecF grad = load(at.weights + n) * (load(at.grad_weights + n) - mean);
    store(at.grad_weights + n, grad * set1(scale));
  }
}

// Adds (`adds`) or writes what one pooled head gives to the group's keys and values.
inline void spread(const PoolLayout& layout, bool has_evaluator, bool adds,
                   const BackwardScratch& at) {
  const std::int64_t stride = padded_lanes(layout.head_dim);
  for_each_vector(layout.head_dim, [&](std::int64_t d, std::int64_t) {
    const VecF of_key = load(at.grad_core_key + d);
    const VecF of_value = load(at.grad_core_value + d);
    const VecF q = has_evaluator ? load(at.evaluator + d) : zero();
    for (std::int64_t n = 0; n < layout.group; ++n) {
      float* key = at.grad_key + n * stride + d;
      float* value = at.grad_value + n * stride + d;
      const VecF weight = set1(at.weights[n]);
      VecF sum = fma(weight, of_key, adds ? load(key) : zero());
      if (has_evaluator) {
        sum = fma(set1(at.grad_weights[n]), q, sum);
      }
      store(key, sum);
      store(value, fma(weight, of_value, adds ? load(value) : zero()));
    }
  });
}

// The gradient of a column's maximum to the first token that has it.
template <class T>
inline void spread_maximum(const PoolLayout& layout, const Rows<const T>& rows, const float* grad,
                           float* out) {
  const std::int64_t stride = padded_lanes(layout.head_dim);
  for_each_vector(layout.head_dim, [&](std::int64_t d, std::int64_t count) {
    const VecF most = largest_in_column(rows, layout.group, d, count);
    VecI is_open = set1(std::int32_t{-1});
    for (std::int64_t n = 0; n < layout.group; ++n) {
      const VecF x = load_row(rows[n] + d, count);
      const VecI is_it = is_open & ((x == most) | (x != x));
      store(out + n * stride + d, is_it ? load(grad + d) : zero());
      is_open &= ~is_it;
    }
  });
}

// Zeros for tokens begin..end-1 of a key head; for their queries.
template <class T>
inline void clear_tokens(const PoolLayout& layout, const PoolItem& item, std::int64_t begin,
                         std::int64_t end, const GroupPoolGradients& gradients) {
  for (std::int64_t t = begin; t < end; ++t) {
    clear_row(rows_at<T>(gradients.key, item.batch, item.key_head, t)[0], layout.head_dim);
    clear_row(rows_at<T>(gradients.value, item.batch, item.key_head, t)[0], layout.head_dim);
  }
}
template <class T>
inline void clear_queries(const PoolLayout& layout, const PoolItem& item, std::int64_t begin,
                          std::int64_t end, const GroupPoolGradients& gradients) {
  for (std::int64_t h = 0; h < layout.query_share && layout.num_queries > 0; ++h) {
    for (std::int64_t t = begin; t < end; ++t) {
      if (layout.query_of(t) >= 0) {
        clear_row(rows_at<T>(gradients.query, item.batch, item.key_head * layout.query_share + h,
                             layout.query_of(t))[0],
                  layout.head_dim);
      }
    }
  }
}

// The evaluator's gradient to the queries of which it is the mean.
template <class T>
inline void store_grad_query(const PoolLayout& layout, const PoolItem& item, std::int64_t first,
                             const PooledHead& head, const GroupPoolGradients& gradients,
                             const BackwardScratch& at) {
  const std::int64_t last = layout.query_of(first + layout.group - 1);
  for (std::int64_t h = 0; h < head.num_queries; ++h) {
    T* row = rows_at<T>(gradients.query, item.batch, head.first_query + h, last)[0];
    for_each_vector(layout.head_dim, [&](std::int64_t d, std::int64_t count) {
      store_row(row + d, count, load(at.grad_query + d) / static_cast<float>(head.num_queries));
    });
  }
}

// What one pooled head gives to its group; `adds` after the first.
template <class T>
inline void differentiate_head(const GroupPoolInputs& in, const PoolLayout& layout,
                               const PoolItem& item, std::int64_t first, const PooledHead& head,
                               bool adds, const GroupPoolGradients& gradients,
                               const BackwardScratch& at) {
  const Rows<const T> keys = rows_at<T>(in.key, item.batch, item.key_head, first);
  const Rows<const T> values = rows_at<T>(in.value, item.batch, item.key_head, first);
  const std::int64_t width = layout.head_dim;
  widen(rows_at<T>(gradients.grad_key, item.batch, head.pooled, item.group)[0], width,
        at.grad_core_key);
  widen(rows_at<T>(gradients.grad_value, item.batch, head.pooled, item.group)[0], width,
        at.grad_core_value);
  if (in.kind == PoolKind::kMax) {
    spread_maximum(layout, keys, at.grad_core_key, at.grad_key);
    spread_maximum(layout, values, at.grad_core_value, at.grad_value);
    return;
  }
  group_weights<T>(in, layout, item, first, head, at.evaluator);
  const bool has_evaluator = in.kind == PoolKind::kAttention;
  if (has_evaluator) {
    dot_rows(at.grad_core_key, keys, layout.group, width, 1.0F, at.grad_weights);
    dot_rows(at.grad_core_value, values, layout.group, width, 1.0F, at.of_values);
    to_grad_logits(layout.group, static_cast<float>(in.scale), at);
    sum_rows(at.grad_weights, keys, layout.group, width, at.grad_query);
    store_grad_query<T>(layout, item, first, head, gradients, at);
  }
  spread(layout, has_evaluator, adds, at);
}

template <class T>
inline void differentiate_group(const GroupPoolInputs& in, const PoolLayout& layout,
                                const PoolItem& item, std::int64_t first,
                                const GroupPoolGradients& gradients, const BackwardScratch& at) {
  for (std::int64_t i = 0; i < layout.pooled_share; ++i) {
    differentiate_head<T>(in, layout, item, first, pooled_head(layout, item.key_head, i), i > 0,
                          gradients, at);
  }
  const Rows<T> keys = rows_at<T>(gradients.key, item.batch, item.key_head, first);
  const Rows<T> values = rows_at<T>(gradients.value, item.batch, item.key_head, first);
  const std::int64_t stride = padded_lanes(layout.head_dim);
  for (std::int64_t n = 0; n < layout.group; ++n) {
    for_each_vector(layout.head_dim, [&](std::int64_t d, std::int64_t count) {
      store_row(keys[n] + d, count, load(at.grad_key + n * stride + d));
      store_row(values[n] + d, count, load(at.grad_value + n * stride + d));
    });
  }
  clear_queries<T>(layout, item, first, first + layout.group - 1, gradients);
}

template <class T>
void differentiate_items(const GroupPoolInputs& in, const PoolLayout& layout,
                         const GroupPoolGradients& gradients, std::int64_t begin, std::int64_t end,
                         float* scratch) {
  const BackwardScratch at(layout, scratch);
  const auto clear = [&](const PoolItem& item, std::int64_t from, std::int64_t to) {
    clear_tokens<T>(layout, item, from, to, gradients);
    clear_queries<T>(layout, item, from, to, gradients);
  };
  for (std::int64_t number = begin; number < end; ++number) {
    const PoolItem item = item_at(number, layout);
    const std::int64_t start = first_token(in, item.batch);
    const std::int64_t complete = layout.complete(start);
    const std::int64_t behind = start + complete * layout.group;
    if (item.group == 0) {
      clear(item, 0, start < layout.num_tokens ? start : layout.num_tokens);
    }
    if (item.group < complete) {
      differentiate_group<T>(in, layout, item, start + item.group * layout.group, gradients, at);
    }
    if (item.group + 1 >= layout.groups) {
      clear(item, behind, layout.num_tokens);
    }
  }
}

}  // namespace
}  // namespace paperlab::kernels::PAPERLAB_ISA
