// Compiled once for each instruction set. The head dimension lies in the lanes; a group's keys and
// values are read once for all pooled heads of their head.
#include "kernels/group_pool/cpu.h"

#include "kernels/group_pool/cpu_backward.h"
#include "kernels/group_pool/cpu_rows.h"

namespace paperlab::kernels::PAPERLAB_ISA {
namespace {

// One pooled head of one complete group.
template <class T>
inline void pool_head(const GroupPoolInputs& in, const PoolLayout& layout, const PoolItem& item,
                      std::int64_t first, const PooledHead& head, const GroupPoolOutputs& out,
                      float* scratch) {
  const Rows<const T> keys = rows_at<T>(in.key, item.batch, item.key_head, first);
  const Rows<const T> values = rows_at<T>(in.value, item.batch, item.key_head, first);
  T* core_key = rows_at<T>(out.key, item.batch, head.pooled, item.group)[0];
  T* core_value = rows_at<T>(out.value, item.batch, head.pooled, item.group)[0];
  if (in.kind == PoolKind::kMax) {
    for_each_vector(layout.head_dim, [&](std::int64_t d, std::int64_t count) {
      store_row(core_key + d, count, largest_in_column(keys, layout.group, d, count));
      store_row(core_value + d, count, largest_in_column(values, layout.group, d, count));
    });
    return;
  }
  const float* weights = group_weights<T>(in, layout, item, first, head, scratch);
  sum_rows(weights, keys, layout.group, layout.head_dim, core_key);
  sum_rows(weights, values, layout.group, layout.head_dim, core_value);
}

template <class T>
void pool_items(const GroupPoolInputs& in, const PoolLayout& layout, const GroupPoolOutputs& out,
                std::int64_t begin, std::int64_t end, float* scratch) {
  for (std::int64_t number = begin; number < end; ++number) {
    const PoolItem item = item_at(number, layout);
    const std::int64_t start = first_token(in, item.batch);
    const bool is_complete = item.group < layout.complete(start);
    for (std::int64_t i = 0; i < layout.pooled_share; ++i) {
      const PooledHead head = pooled_head(layout, item.key_head, i);
      if (is_complete) {
        pool_head<T>(in, layout, item, start + item.group * layout.group, head, out, scratch);
      } else {
        clear_row(rows_at<T>(out.key, item.batch, head.pooled, item.group)[0], layout.head_dim);
        clear_row(rows_at<T>(out.value, item.batch, head.pooled, item.group)[0], layout.head_dim);
      }
    }
  }
}

void pool(const GroupPoolInputs& in, const PoolLayout& layout, const GroupPoolOutputs& out,
          std::int64_t begin, std::int64_t end, float* scratch) {
  if (in.key.dtype == DType::kFloat32) {
    pool_items<float>(in, layout, out, begin, end, scratch);
  } else {
    pool_items<std::uint16_t>(in, layout, out, begin, end, scratch);
  }
}

void differentiate(const GroupPoolInputs& in, const PoolLayout& layout,
                   const GroupPoolGradients& gradients, std::int64_t begin, std::int64_t end,
                   float* scratch) {
  if (in.key.dtype == DType::kFloat32) {
    differentiate_items<float>(in, layout, gradients, begin, end, scratch);
  } else {
    differentiate_items<std::uint16_t>(in, layout, gradients, begin, end, scratch);
  }
}

}  // namespace

GroupPoolCpu group_pool_cpu() { return {pool, differentiate}; }

}  // namespace paperlab::kernels::PAPERLAB_ISA
