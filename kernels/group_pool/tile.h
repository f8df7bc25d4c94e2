#pragma once
// How pooling is cut into items and tasks: arithmetic of shapes alone, shared by the CPU and the
// GPU, so that a result does not depend on who computes it or on how many.

#include <cstdint>

#include "paperlab/core/host_device.h"

namespace paperlab::kernels {

constexpr std::int64_t kMaxPoolDim = 256;

// Sizes of a problem; see group_pool.h.
struct PoolLayout {
  std::int64_t batch;
  std::int64_t key_heads;     // G
  std::int64_t query_share;   // query heads of a key head; 1 without queries
  std::int64_t pooled_share;  // pooled heads of a key head: 1 or query_share
  std::int64_t num_tokens;    // T
  std::int64_t num_queries;   // Q; 0 without queries
  std::int64_t groups;        // m
  std::int64_t group;         // g
  std::int64_t head_dim;

  // Backward an item also clears what lies before or behind the groups, so there is one at least.
  PAPERLAB_HD constexpr std::int64_t num_items(bool is_backward) const {
    return batch * key_heads * (is_backward && groups == 0 ? 1 : groups);
  }
  // The query of token t; below 0 where there is none.
  PAPERLAB_HD constexpr std::int64_t query_of(std::int64_t t) const {
    return t - (num_tokens - num_queries);
  }
  // How many of the m groups end below T if group 0 begins at token `first`.
  PAPERLAB_HD constexpr std::int64_t complete(std::int64_t first) const {
    const std::int64_t fit = first < num_tokens ? (num_tokens - first) / group : 0;
    return fit < groups ? fit : groups;
  }
};

// All pooled heads of one group of one key head.
struct PoolItem {
  std::int64_t batch;
  std::int64_t key_head;
  std::int64_t group;
};

PAPERLAB_HD constexpr PoolItem item_at(std::int64_t number, const PoolLayout& layout) {
  const std::int64_t groups = layout.groups == 0 ? 1 : layout.groups;
  const std::int64_t head = number / groups;
  return {head / layout.key_heads, head % layout.key_heads, number % groups};
}

// Items of a task: some 16384 keys' numbers, microseconds of work.
PAPERLAB_HD constexpr std::int64_t items_of_task(const PoolLayout& layout) {
  constexpr std::int64_t kNumbers = 16384;
  const std::int64_t numbers = layout.group * layout.head_dim * layout.pooled_share;
  return numbers >= kNumbers ? 1 : kNumbers / numbers;
}

}  // namespace paperlab::kernels
