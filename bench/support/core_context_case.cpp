#include "bench/support/core_context_case.h"

#include <cmath>

#include "bench/support/attention_gate.h"

namespace paperlab::bench {
namespace {

using kernels::ConstTensorView;
using kernels::DType;
using kernels::TensorView;

// to += from.
template <class T>
void add(const TensorView& to, const Buffer& from, const Executor& executor) {
  const std::int64_t count = to.size[1] * to.size[2] * to.size[3];
  auto* sum = static_cast<T*>(to.data);
  const auto* other = static_cast<const T*>(from.data());
  constexpr std::int64_t kNumbers = 65536;
  parallel_for(executor, (count + kNumbers - 1) / kNumbers, [&](std::int64_t task, int) {
    const std::int64_t end = std::min(count, (task + 1) * kNumbers);
    for (std::int64_t i = task * kNumbers; i < end; ++i) {
      sum[i] += other[i];
    }
  });
}

std::size_t core_bytes(const CoreContextShape& shape) {
  return element_bytes(shape.dtype) *
         static_cast<std::size_t>(shape.num_heads * shape.num_core() * shape.head_dim);
}

}  // namespace

AttentionShape CoreContextShape::dense(std::int64_t num_queries) const {
  return {dtype, num_heads, num_heads, num_queries, length, head_dim, kernels::KeyRule::dense()};
}

AttentionShape CoreContextShape::core_context(std::int64_t num_queries) const {
  AttentionShape shape = dense(num_queries);
  shape.rule = kernels::KeyRule::core_context(group, window);
  return shape;
}

CoreContextCase::CoreContextCase(const CoreContextShape& shape, const AttentionCase& memory)
    : shape_(shape),
      memory_(memory),
      core_key_(core_bytes(shape)),
      core_value_(core_bytes(shape)),
      grad_core_key_(core_bytes(shape)),
      grad_core_value_(core_bytes(shape)) {}

TensorView CoreContextCase::core(const Buffer& buffer) const {
  return view_of(buffer.data(), shape_.dtype, shape_.num_heads, shape_.num_core(), shape_.head_dim);
}

kernels::AttentionInputs CoreContextCase::inputs() const {
  kernels::AttentionInputs inputs = memory_.inputs();
  inputs.rule = kernels::KeyRule::core_context(shape_.group, shape_.window);
  inputs.prefix_key = as_const(core(core_key_));
  inputs.prefix_value = as_const(core(core_value_));
  return inputs;
}

kernels::GroupPoolInputs CoreContextCase::pool_inputs() const {
  const kernels::AttentionInputs of = memory_.inputs();
  kernels::GroupPoolInputs inputs;
  inputs.query = of.query;
  inputs.key = of.key;
  inputs.value = of.value;
  inputs.group = shape_.group;
  inputs.scale = of.scale;
  return inputs;
}

void CoreContextCase::forward(const Executor& executor) {
  kernels::group_pool(pool_inputs(), {core(core_key_), core(core_value_)}, executor);
  kernels::attention(inputs(), memory_.outputs(), executor);
}

void CoreContextCase::backward(const Executor& executor) {
  kernels::AttentionGradients gradients = memory_.gradients();
  const TensorView of[] = {gradients.query, gradients.key, gradients.value};
  gradients.prefix_key = core(grad_core_key_);
  gradients.prefix_value = core(grad_core_value_);
  kernels::attention_backward(inputs(), memory_.backward_inputs(), gradients, executor);
  while (pool_gradients_.size() < 3) {
    pool_gradients_.emplace_back(
        element_bytes(shape_.dtype) *
        static_cast<std::size_t>(shape_.num_heads * shape_.length * shape_.head_dim));
  }
  const auto pooled = [&](std::size_t i) {
    return view_of(pool_gradients_[i].data(), shape_.dtype, shape_.num_heads, shape_.length,
                   shape_.head_dim);
  };
  kernels::group_pool_backward(pool_inputs(),
                               {as_const(core(grad_core_key_)), as_const(core(grad_core_value_)),
                                pooled(0), pooled(1), pooled(2)},
                               executor);
  for (std::size_t i = 0; i < 3; ++i) {
    if (shape_.dtype == DType::kFloat64) {
      add<double>(of[i], pool_gradients_[i], executor);
    } else {
      add<float>(of[i], pool_gradients_[i], executor);
    }
  }
}

std::int64_t CoreContextCase::forward_bytes() const {
  return static_cast<std::int64_t>(2 * core_bytes(shape_));
}

std::int64_t CoreContextCase::backward_bytes() const {
  std::int64_t bytes = 2 * forward_bytes();
  for (const Buffer& buffer : pool_gradients_) {
    bytes += static_cast<std::int64_t>(buffer.num_bytes());
  }
  return bytes;
}

std::string wrong_core_context(const Executor& executor) {
  const CoreContextShape shape = {2, 301, 128, 16, 75, DType::kFloat32};
  CoreContextShape exact_shape = shape;
  exact_shape.dtype = DType::kFloat64;
  const AttentionCase memory(shape.dense(shape.length));
  const AttentionCase exact_memory = memory.exact();
  CoreContextCase ours(shape, memory);
  CoreContextCase exact(exact_shape, exact_memory);
  ours.forward(executor);
  ours.backward(executor);
  exact.forward(serial_executor());
  exact.backward(serial_executor());
  std::string wrong = difference(memory.out(), exact_memory.out(), memory.shape());
  const auto gradients = memory.gradient_values();
  const auto exact_gradients = exact_memory.gradient_values();
  for (std::size_t i = 0; i < gradients.size() && wrong.empty(); ++i) {
    wrong = difference(gradients[i], exact_gradients[i], memory.shape());
  }
  return wrong;
}

}  // namespace paperlab::bench
