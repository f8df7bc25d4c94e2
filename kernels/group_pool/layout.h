#pragma once
// A problem's sizes, for group_pool.cpp and reference.cpp.

#include <algorithm>
#include <cstdint>

#include "kernels/group_pool/group_pool.h"
#include "kernels/group_pool/tile.h"

namespace paperlab::kernels {

// Without query heads nobody's attention counts: a group's tokens weigh the same.
inline PoolKind pool_kind(const GroupPoolInputs& in) {
  const bool is_uniform = in.kind == PoolKind::kAttention && in.query.size[1] == 0;
  return is_uniform ? PoolKind::kMean : in.kind;
}

// pooled_heads: P, groups: m. Without pooled heads there are no groups: gradients are zeros.
inline PoolLayout pool_layout(const GroupPoolInputs& in, std::int64_t pooled_heads,
                              std::int64_t groups) {
  const std::int64_t key_heads = in.key.size[1];
  const bool has_query = in.kind == PoolKind::kAttention;
  const auto share = [key_heads](std::int64_t heads) {
    return key_heads == 0 ? 1 : heads / key_heads;
  };
  return {in.key.size[0],
          key_heads,
          has_query ? share(in.query.size[1]) : 1,
          std::max<std::int64_t>(share(pooled_heads), 1),
          in.key.size[2],
          has_query ? in.query.size[2] : 0,
          pooled_heads == 0 ? 0 : groups,
          in.group,
          in.key.size[3]};
}

}  // namespace paperlab::kernels
