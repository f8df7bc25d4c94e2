// Checks, the choice of path, and the tasks of the fast one.
#include "kernels/group_pool/group_pool.h"

#include <algorithm>
#include <string>
#include <vector>

#include "kernels/common/dispatch.h"
#include "kernels/group_pool/cpu.h"
#include "kernels/group_pool/layout.h"
#include "paperlab/core/error.h"

namespace paperlab::kernels {
namespace {

std::string shape_of(const std::int64_t (&size)[4]) {
  std::string text = "[";
  for (int i = 0; i < 4; ++i) {
    text += (i == 0 ? "" : ", ") + std::to_string(size[i]);
  }
  return text + "]";
}

// Messages are made only for what fails: a decode step takes some microseconds.
template <class E>
[[noreturn]] void fail(const std::string& required, const std::string& got) {
  require<E>(false, "group_pool", required, got);
  __builtin_unreachable();
}

struct Shape {
  std::int64_t size[4];
};

template <class View>
void check_view(const View& view, const char* name, const Shape& wanted, DType dtype) {
  for (int i = 0; i < 4; ++i) {
    if (view.size[i] != wanted.size[i]) {
      fail<ShapeError>(std::string(name) + " must be " + shape_of(wanted.size),
                       shape_of(view.size));
    }
  }
  if (view.dtype != dtype) {
    fail<DTypeError>(std::string(name) + " must be of the dtype of key", "another");
  }
  if (view.stride[3] != 1 && view.size[3] > 1) {
    fail<ShapeError>(std::string(name) + " must be contiguous in its last dimension",
                     "stride " + std::to_string(view.stride[3]));
  }
}

void check_query(const GroupPoolInputs& in) {
  if (in.kind != PoolKind::kAttention) {
    return;
  }
  const auto& [batch, key_heads, tokens, width] = in.key.size;
  const auto& size = in.query.size;
  check_view(in.query, "query", {{batch, size[1], size[2], width}}, in.key.dtype);
  if (key_heads == 0 ? size[1] != 0 : size[1] % key_heads != 0) {
    fail<ShapeError>(
        "query's heads must be a multiple of key's (" + std::to_string(key_heads) + ")",
        std::to_string(size[1]));
  }
  if (size[2] > tokens) {
    fail<ShapeError>("query must have at most " + std::to_string(tokens) + " tokens",
                     std::to_string(size[2]));
  }
}

void check_inputs(const GroupPoolInputs& in) {
  const std::int64_t width = in.key.size[3];
  if (width < 1 || width > kMaxPoolDim) {
    fail<ShapeError>("head_dim must be in 1.." + std::to_string(kMaxPoolDim),
                     std::to_string(width));
  }
  const auto& size = in.key.size;
  const Shape key = {{size[0], size[1], size[2], size[3]}};
  check_view(in.key, "key", key, in.key.dtype);
  check_view(in.value, "value", key, in.key.dtype);
  if (in.group < 1) {
    fail<ValueError>("group must be at least 1", std::to_string(in.group));
  }
  if (in.first < 0) {
    fail<ValueError>("first must be at least 0", std::to_string(in.first));
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
    fail<ShapeError>("core_key must have as many heads as query or key (mean, max: as key)",
                     shape_of(key.size));
  }
  const std::int64_t most = num_groups(tokens, in.first, in.group);
  if (key.size[2] > most) {
    fail<ShapeError>("core_key must have at most " + std::to_string(most) + " groups",
                     shape_of(key.size));
  }
  const Shape core = {{batch, heads, key.size[2], width}};
  check_view(key, "core_key", core, in.key.dtype);
  check_view(value, "core_value", core, in.key.dtype);
}

// Where groups begin, and that their last tokens have queries.
void check_starts(const GroupPoolInputs& in, const PoolLayout& layout) {
  for (std::int64_t b = 0; b < layout.batch; ++b) {
    const std::int64_t start = in.start == nullptr ? 0 : in.start[b];
    if (start < 0 || start > layout.num_tokens) {
      fail<ValueError>("start must be in 0.." + std::to_string(layout.num_tokens),
                       std::to_string(start));
    }
    const std::int64_t first_last = start + in.first + layout.group - 1;
    const bool has_groups = layout.complete(start + in.first) > 0;
    if (in.kind == PoolKind::kAttention && has_groups && layout.query_of(first_last) < 0) {
      fail<ShapeError>("query must hold the last token of every group, so at least " +
                           std::to_string(layout.num_tokens - first_last) + " tokens",
                       std::to_string(layout.num_queries));
    }
  }
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

void check_gradients(const GroupPoolInputs& in, const GroupPoolGradients& gradients) {
  check_core(in, gradients.grad_key, gradients.grad_value);
  const auto shape = [](const ConstTensorView& view) {
    return Shape{{view.size[0], view.size[1], view.size[2], view.size[3]}};
  };
  check_view(gradients.key, "key's gradient", shape(in.key), in.key.dtype);
  check_view(gradients.value, "value's gradient", shape(in.key), in.key.dtype);
  if (in.kind == PoolKind::kAttention) {
    check_view(gradients.query, "query's gradient", shape(in.query), in.key.dtype);
  }
}

}  // namespace

void group_pool(const GroupPoolInputs& inputs, const GroupPoolOutputs& outputs,
                const Executor& executor) {
  check_inputs(inputs);
  check_core(inputs, outputs.key, outputs.value);
  const PoolLayout layout = pool_layout(inputs, outputs.key.size[1], outputs.key.size[2]);
  check_starts(inputs, layout);
  if (inputs.key.dtype == DType::kFloat64) {
    group_pool_reference(inputs, outputs);
    return;
  }
  const GroupPoolCpu kernel = cpu();
  for_items(layout, false, executor, [&](std::int64_t begin, std::int64_t end, float* scratch) {
    kernel.pool(inputs, layout, outputs, begin, end, scratch);
  });
}

void group_pool_backward(const GroupPoolInputs& inputs, const GroupPoolGradients& gradients,
                         const Executor& executor) {
  check_inputs(inputs);
  check_gradients(inputs, gradients);
  const PoolLayout layout =
      pool_layout(inputs, gradients.grad_key.size[1], gradients.grad_key.size[2]);
  check_starts(inputs, layout);
  if (inputs.key.dtype == DType::kFloat64) {
    group_pool_backward_reference(inputs, gradients);
    return;
  }
  const GroupPoolCpu kernel = cpu();
  for_items(layout, true, executor, [&](std::int64_t begin, std::int64_t end, float* scratch) {
    kernel.differentiate(inputs, layout, gradients, begin, end, scratch);
  });
}

}  // namespace paperlab::kernels
