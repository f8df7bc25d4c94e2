#pragma once
// From a problem's tensors to units and tasks, for attention.cpp and schedule_backward.cpp.

#include <cstddef>
#include <cstdint>
#include <new>
#include <type_traits>

#include "kernels/attention/attention.h"
#include "kernels/attention/cpu.h"
#include "kernels/common/dispatch.h"

namespace paperlab::kernels {

// The tasks for tensors like `query`. Pairs pay from 16 of them a row on.
inline AttentionCpu attention_tasks(const ConstTensorView& query) {
  if (query.dtype == DType::kBFloat16 && query.size[3] >= 32 && cpu_has_bfloat16()) {
    return avx512::attention_cpu_bfloat16();
  }
  return select_isa(generic::attention_cpu, avx2::attention_cpu, avx512::attention_cpu)();
}

inline std::int64_t element_bytes(DType dtype) { return dtype == DType::kBFloat16 ? 2 : 4; }

// The address of element (b, h, 0, 0).
template <class Void>
Void* head_data(const BasicTensorView<Void>& view, std::int64_t b, std::int64_t h) {
  using Byte = std::conditional_t<std::is_const_v<Void>, const char, char>;
  return static_cast<Byte*>(view.data) +
         (b * view.stride[0] + h * view.stride[1]) * element_bytes(view.dtype);
}

template <class Void>
BasicUnitRows<Void> unit_rows(const BasicTensorView<Void>& view, std::int64_t b, std::int64_t h) {
  return {head_data(view, b, h), view.stride[1], view.stride[2], view.dtype};
}

template <class Void>
BasicHeadRows<Void> head_rows(const BasicTensorView<Void>& view, std::int64_t b, std::int64_t h) {
  if (view.data == nullptr) {
    return {};
  }
  return {head_data(view, b, h), view.stride[2], view.dtype};
}

// How a problem is cut; everything here is a function of shapes.
struct Geometry {
  explicit Geometry(const AttentionInputs& in)
      : batch(in.query.size[0]),
        num_heads(in.query.size[1]),
        num_key_heads(in.key.size[1]),
        num_prefix_heads(in.prefix_key.data == nullptr ? 0 : in.prefix_key.size[1]),
        num_queries(in.query.size[2]),
        num_keys(in.key.size[2]),
        num_prefix(in.prefix_key.data == nullptr ? 0 : in.prefix_key.size[2]),
        head_dim(in.query.size[3]),
        rows(row_layout(num_heads, num_key_heads, num_prefix_heads, num_queries)) {}

  bool is_empty() const { return batch == 0 || num_heads == 0 || num_queries == 0; }

  std::int64_t batch;
  std::int64_t num_heads;
  std::int64_t num_key_heads;
  std::int64_t num_prefix_heads;
  std::int64_t num_queries;
  std::int64_t num_keys;
  std::int64_t num_prefix;
  std::int64_t head_dim;
  RowLayout rows;
};

// The unit `index` of batch row b.
inline AttentionUnit unit_at(const AttentionInputs& in, const Geometry& g, std::int64_t b,
                             std::int64_t index) {
  const std::int64_t head = index * g.rows.heads_per_unit;
  const std::int64_t key_head = index / g.rows.units_per_key_head;
  const std::int64_t prefix_head =
      g.num_prefix_heads == 0 ? 0 : head / (g.num_heads / g.num_prefix_heads);
  AttentionUnit unit;
  unit.query = unit_rows(in.query, b, head);
  unit.prefix_query =
      in.prefix_query.data == nullptr ? unit.query : unit_rows(in.prefix_query, b, head);
  unit.key = head_rows(in.key, b, key_head);
  unit.value = head_rows(in.value, b, key_head);
  unit.prefix_key = head_rows(in.prefix_key, b, prefix_head);
  unit.prefix_value = head_rows(in.prefix_value, b, prefix_head);
  unit.rows = g.rows;
  unit.num_queries = g.num_queries;
  unit.num_keys = g.num_keys;
  unit.num_prefix = g.num_prefix;
  unit.key_start = in.key_start == nullptr ? 0 : in.key_start[b];
  unit.key_end = in.key_end == nullptr ? in.rule.num_past + g.num_keys : in.key_end[b];
  unit.head_dim = g.head_dim;
  unit.rule = in.rule;
  unit.scale = static_cast<float>(in.scale);
  return unit;
}

// Memory of a call, aligned to cache lines and not initialized.
class Floats {
 public:
  explicit Floats(std::size_t count)
      : data_(static_cast<float*>(::operator new(count * sizeof(float), kAlignment))) {}
  ~Floats() { ::operator delete(data_, kAlignment); }
  Floats(const Floats&) = delete;
  Floats& operator=(const Floats&) = delete;
  float* data() { return data_; }

 private:
  static constexpr std::align_val_t kAlignment{64};
  float* data_;
};

// A piece of scratch memory for each worker.
class WorkerScratch {
 public:
  WorkerScratch(std::size_t floats, const Executor& executor)
      : size_((floats + 15) / 16 * 16),
        memory_(size_ * static_cast<std::size_t>(executor.num_workers())) {}
  float* of(int worker) { return memory_.data() + static_cast<std::size_t>(worker) * size_; }

 private:
  std::size_t size_;
  Floats memory_;
};

// The backward pass in float32 and bfloat16 (schedule_backward.cpp); the inputs are checked.
void backward_tasks(const AttentionInputs& in, const AttentionBackwardInputs& forward,
                    const AttentionGradients& gradients, const Executor& executor);

}  // namespace paperlab::kernels
