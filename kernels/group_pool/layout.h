#pragma once
// A problem's sizes, for group_pool.cpp and reference.cpp.

#include "kernels/group_pool/group_pool.h"
#include "kernels/group_pool/tile.h"

namespace paperlab::kernels {

// pooled_heads: P, groups: m.
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
          share(pooled_heads),
          in.key.size[2],
          has_query ? in.query.size[2] : 0,
          groups,
          in.group,
          in.key.size[3]};
}

}  // namespace paperlab::kernels
