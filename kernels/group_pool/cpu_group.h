#pragma once
// The weights of a group's tokens. Include only from cpu.cpp.

#include "kernels/group_pool/cpu_rows.h"

namespace paperlab::kernels::PAPERLAB_ISA {
namespace {

// A pooled head and the query heads whose mean is its evaluator.
struct PooledHead {
  std::int64_t pooled;
  std::int64_t first_query;
  std::int64_t num_queries;
};

// The i-th pooled head of a key head.
inline PooledHead pooled_head(const PoolLayout& layout, std::int64_t key_head, std::int64_t i) {
  const std::int64_t pooled = key_head * layout.pooled_share + i;
  const std::int64_t of_pooled = layout.query_share / layout.pooled_share;
  return {pooled, pooled * of_pooled, of_pooled};
}

inline std::int64_t first_token(const GroupPoolInputs& in, std::int64_t b) {
  return in.first + (in.start == nullptr ? 0 : in.start[b]);
}

// The evaluator at the start of scratch, as float32; the weights behind it, which it returns.
template <class T>
inline float* group_weights(const GroupPoolInputs& in, const PoolLayout& layout,
                            const PoolItem& item, std::int64_t first, const PooledHead& head,
                            float* scratch) {
  float* evaluator = scratch;
  float* weights = scratch + padded_lanes(layout.head_dim);
  if (in.kind == PoolKind::kMean) {
    for (std::int64_t n = 0; n < layout.group; ++n) {
      weights[n] = 1.0F / static_cast<float>(layout.group);
    }
    return weights;
  }
  const std::int64_t last = layout.query_of(first + layout.group - 1);
  mean_of_heads(rows_at<T>(in.query, item.batch, head.first_query, last)[0], in.query.stride[1],
                head.num_queries, layout.head_dim, evaluator);
  dot_rows(evaluator, rows_at<T>(in.key, item.batch, item.key_head, first), layout.group,
           layout.head_dim, static_cast<float>(in.scale), weights);
  to_softmax(layout.group, weights);
  return weights;
}

}  // namespace
}  // namespace paperlab::kernels::PAPERLAB_ISA
