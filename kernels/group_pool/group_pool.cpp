// Checks, the choice of path, and the tasks of the fast one.
#include "kernels/group_pool/group_pool.h"

#include <algorithm>
#include <string>
#include <vector>

#include "kernels/common/cpu_dtype.h"
#include "kernels/common/dispatch.h"
#include "kernels/common/view_checks.h"
#include "kernels/group_pool/cpu.h"
#include "kernels/group_pool/layout.h"
#include "paperlab/core/error.h"

namespace paperlab::kernels {
namespace {

constexpr char kFunction[] = "group_pool";

ViewCheck view_check(const GroupPoolInputs& in) { return {kFunction, "key", in.key.dtype}; }

void check_query(const GroupPoolInputs& in) {
  if (in.kind != PoolKind::kAttention) {
    return;
  }
  const auto& [batch, key_heads, tokens, width] = in.key.size;
  const auto& size = in.query.size;
  view_check(in)(in.query, "query", {{batch, size[1], size[2], width}});
  check_head_groups(kFunction, size[1], key_heads);
  if (size[2] > tokens) {
    refuse<ShapeError>(kFunction, "query must have at most " + std::to_string(tokens) + " tokens",
                       std::to_string(size[2]));
  }
}

void check_inputs(const GroupPoolInputs& in) {
  const std::int64_t width = in.key.size[3];
  if (width < 1 || width > kMaxPoolDim) {
    refuse<ShapeError>(kFunction, "head_dim must be in 1.." + std::to_string(kMaxPoolDim),
                       std::to_string(width));
  }
  const auto& size = in.key.size;
  const ViewSizes key = {{size[0], size[1], size[2], size[3]}};
  const ViewCheck check_view = view_check(in);
  check_view(in.key, "key", key);
  check_view(in.value, "value", key);
  if (in.group < 1) {
    refuse<ValueError>(kFunction, "group must be at least 1", std::to_string(in.group));
  }
  if (in.first < 0) {
    refuse<ValueError>(kFunction, "first must be at least 0", std::to_string(in.first));
  }
  check_query(in);
}

// The pooled tensors' P and m.
template <class View>
void check_core(const GroupPoolInputs& in, const View& key, const View& value) {
  const auto& [batch, key_heads, tokens, width] = in.key.size;
  const std::int64_t heads = key.size[1];
  const bool is_of_query = in.kind == PoolKind::kAttention && heads == in.query.size[1];
  if (heads != key_heads && !is_of_query) {
    refuse<ShapeError>(kFunction,
                       "core_key must have as many heads as query or key (mean, max: as key)",
                       sizes_text(key.size));
  }
  const std::int64_t most = num_groups(tokens, in.first, in.group);
  if (key.size[2] > most) {
    refuse<ShapeError>(kFunction, "core_key must have at most " + std::to_string(most) + " groups",
                       sizes_text(key.size));
  }
  const ViewSizes core = {{batch, heads, key.size[2], width}};
  const ViewCheck check_view = view_check(in);
  check_view(key, "core_key", core);
  check_view(value, "core_value", core);
}

// Where groups begin, and that their last tokens have queries.
void check_starts(const GroupPoolInputs& in, const PoolLayout& layout) {
  for (std::int64_t b = 0; b < layout.batch; ++b) {
    const std::int64_t start = in.start == nullptr ? 0 : in.start[b];
    if (start < 0 || start > layout.num_tokens) {
      refuse<ValueError>(kFunction, "start must be in 0.." + std::to_string(layout.num_tokens),
                         std::to_string(start));
    }
    const std::int64_t first_last = start + in.first + layout.group - 1;
    const bool has_groups = layout.complete(start + in.first) > 0;
    if (in.kind == PoolKind::kAttention && has_groups && layout.query_of(first_last) < 0) {
      refuse<ShapeError>(kFunction,
                         "query must hold the last token of every group, so at least " +
                             std::to_string(layout.num_tokens - first_last) + " tokens",
                         std::to_string(layout.num_queries));
    }
  }
}

GroupPoolInputs with_used_kind(const GroupPoolInputs& in) {
  GroupPoolInputs used = in;
  used.kind = pool_kind(in);
  return used;
}

GroupPoolCpu cpu() {
  return select_isa(generic::group_pool_cpu, avx2::group_pool_cpu, avx512::group_pool_cpu)();
}

// Runs body(begin, end, scratch) on all items.
template <class F>
void for_items(const PoolLayout& layout, bool is_backward, const Executor& executor, F body) {
  const std::int64_t items = layout.num_items(is_backward);
  const std::int64_t of_task = items_of_task(layout);
  const std::size_t size = (pool_scratch(layout, is_backward) + 15) / 16 * 16;
  const bool is_single = items <= of_task;  // a decode step wakes no thread
  const auto workers = static_cast<std::size_t>(is_single ? 1 : executor.num_workers());
  std::vector<float> scratch(workers * size);
  if (is_single) {
    body(0, items, scratch.data());
    return;
  }
  parallel_for(executor, (items + of_task - 1) / of_task, [&](std::int64_t task, int worker) {
    body(task * of_task, std::min(items, (task + 1) * of_task),
         scratch.data() + static_cast<std::size_t>(worker) * size);
  });
}

}  // namespace

void check_group_pool(const GroupPoolInputs& in, const GroupPoolOutputs& out) {
  check_inputs(in);
  check_core(in, out.key, out.value);
}

void check_group_pool_backward(const GroupPoolInputs& in, const GroupPoolGradients& gradients) {
  check_inputs(in);
  check_core(in, gradients.grad_key, gradients.grad_value);
  const auto shape = [](const ConstTensorView& view) {
    return ViewSizes{{view.size[0], view.size[1], view.size[2], view.size[3]}};
  };
  const ViewCheck check_view = view_check(in);
  check_view(gradients.key, "key's gradient", shape(in.key));
  check_view(gradients.value, "value's gradient", shape(in.key));
  if (in.kind == PoolKind::kAttention) {
    check_view(gradients.query, "query's gradient", shape(in.query));
  }
}

void group_pool(const GroupPoolInputs& inputs, const GroupPoolOutputs& outputs,
                const Executor& executor) {
  check_group_pool(inputs, outputs);
  require_cpu_dtype(inputs.key.dtype, "group_pool");
  const PoolLayout layout = pool_layout(inputs, outputs.key.size[1], outputs.key.size[2]);
  check_starts(inputs, layout);
  if (inputs.key.dtype == DType::kFloat64) {
    group_pool_reference(inputs, outputs);
    return;
  }
  const GroupPoolCpu kernel = cpu();
  const GroupPoolInputs used = with_used_kind(inputs);
  for_items(layout, false, executor, [&](std::int64_t begin, std::int64_t end, float* scratch) {
    kernel.pool(used, layout, outputs, begin, end, scratch);
  });
}

void group_pool_backward(const GroupPoolInputs& inputs, const GroupPoolGradients& gradients,
                         const Executor& executor) {
  check_group_pool_backward(inputs, gradients);
  require_cpu_dtype(inputs.key.dtype, "group_pool_backward");
  const PoolLayout layout =
      pool_layout(inputs, gradients.grad_key.size[1], gradients.grad_key.size[2]);
  check_starts(inputs, layout);
  if (inputs.key.dtype == DType::kFloat64) {
    group_pool_backward_reference(inputs, gradients);
    return;
  }
  const GroupPoolCpu kernel = cpu();
  const GroupPoolInputs used = with_used_kind(inputs);
  for_items(layout, true, executor, [&](std::int64_t begin, std::int64_t end, float* scratch) {
    kernel.differentiate(used, layout, gradients, begin, end, scratch);
  });
}

}  // namespace paperlab::kernels
