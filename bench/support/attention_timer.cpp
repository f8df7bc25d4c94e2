#include "bench/support/attention_timer.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <functional>
#include <utility>
#include <vector>

#include "bench/support/sdpa.h"
#include "bench/support/timing.h"

namespace paperlab::bench {
namespace {

using kernels::AttentionInputs;
using kernels::DType;

constexpr double kRowSeconds = 1.5;  // past which a row has enough repetitions
constexpr std::size_t kMostArenaBytes = std::size_t{4} << 30U;

Contestant contestant(std::function<void()> step) {
  return {[] {}, std::move(step)};
}

// Calls step(i) for the next i of `count` each time.
Contestant rotating(std::size_t count, std::function<void(std::size_t)> step) {
  return contestant([count, step = std::move(step), i = std::size_t{0}]() mutable {
    step(i);
    i = i + 1 == count ? 0 : i + 1;
  });
}

// Query, result and the caches of one query, side by side in the arena.
class Caches {
 public:
  Caches(const AttentionShape& shape, const Buffer& arena)
      : query_(vector_bytes(shape)), out_(vector_bytes(shape)), lse_(vector_bytes(shape)) {
    const auto vector_at = [&](const Buffer& buffer) {
      return view_of(buffer.data(), shape.dtype, shape.num_heads, 1, shape.head_dim);
    };
    fill_normal(query_.data(), shape.dtype, query_.num_bytes() / element_bytes(shape.dtype), 1);
    outputs_ = {vector_at(out_), lse_.data()};
    AttentionInputs inputs;
    inputs.query = as_const(vector_at(query_));
    inputs.rule = shape.rule;
    inputs.scale = 1.0 / std::sqrt(static_cast<double>(shape.head_dim));
    const std::size_t bytes = cache_bytes(shape);
    for (std::size_t at = 0; at + bytes <= arena.num_bytes(); at += bytes) {
      char* data = static_cast<char*>(arena.data()) + at;
      for (kernels::ConstTensorView* view : {&inputs.key, &inputs.value}) {
        *view = as_const(
            view_of(data, shape.dtype, shape.num_kv_heads, shape.num_keys, shape.head_dim));
        data += bytes / 2;
      }
      inputs_.push_back(inputs);
    }
  }

  std::size_t size() const { return inputs_.size(); }
  const AttentionInputs& inputs(std::size_t i) const { return inputs_[i]; }
  const kernels::AttentionOutputs& outputs() const { return outputs_; }
  std::vector<double> out() const { return values_of(as_const(outputs_.out)); }

  std::vector<Sdpa> baselines(SdpaForm form) const {
    std::vector<Sdpa> result;
    result.reserve(inputs_.size());
    for (const AttentionInputs& inputs : inputs_) {
      result.emplace_back(inputs, form);
    }
    return result;
  }

 private:
  static std::size_t vector_bytes(const AttentionShape& shape) {
    return static_cast<std::size_t>(shape.num_heads * shape.head_dim) * element_bytes(shape.dtype);
  }

  Buffer query_;
  Buffer out_;
  Buffer lse_;
  kernels::AttentionOutputs outputs_;
  std::vector<AttentionInputs> inputs_;
};

}  // namespace

const std::string& AttentionTimer::wrong_on_small(const AttentionShape& shape, Pass pass) {
  std::string key = dtype_name(shape.dtype);
  for (const std::int64_t number :
       {shape.head_dim, static_cast<std::int64_t>(shape.rule.kind),
        std::int64_t{shape.num_queries == 1}, static_cast<std::int64_t>(pass)}) {
    key += " " + std::to_string(number);
  }
  if (small_results_.count(key) == 0) {
    small_results_[key] = wrong_on_small_shape(shape, pass, ThreadPool(2));
  }
  return small_results_[key];
}

void AttentionTimer::forward(const AttentionShape& shape, const Executor& executor, RatioRow& row) {
  set_sdpa_threads(executor.num_workers());
  const AttentionCase memory(shape);
  Sdpa baseline(memory.inputs());
  const auto ours = [&] { kernels::attention(memory.inputs(), memory.outputs(), executor); };
  const auto theirs = [&] { baseline.forward(); };
  row.backend = baseline.backend();
  row.wrong = wrong_on_small(shape, Pass::kForward);
  if (row.wrong.empty()) {
    ours();
    theirs();
    row.wrong = difference(memory.out(), baseline.out(), shape);
  }
  if (row.wrong.empty()) {
    const auto timings =
        time_interleaved({contestant(ours), contestant(theirs)}, num_repetitions_, kRowSeconds);
    row.ours = timings[0];
    row.baseline = timings[1];
  }
}

void AttentionTimer::backward(const AttentionShape& shape, const Executor& executor,
                              RatioRow& row) {
  set_sdpa_threads(executor.num_workers());
  const AttentionCase memory(shape);
  Sdpa baseline(memory.inputs());
  const auto ours = [&] {
    kernels::attention_backward(memory.inputs(), memory.backward_inputs(), memory.gradients(),
                                executor);
  };
  const auto theirs = [&] { baseline.backward(); };
  row.backend = "flash for CPU";
  row.wrong = wrong_on_small(shape, Pass::kBackward);
  if (row.wrong.empty()) {
    kernels::attention(memory.inputs(), memory.outputs(), executor);
    baseline.prepare_backward(memory.backward_inputs().grad_out);
    ours();
    theirs();
    const auto gradients = memory.gradient_values();
    const auto expected = baseline.gradients();
    for (std::size_t i = 0; i < gradients.size() && row.wrong.empty(); ++i) {
      row.wrong = difference(gradients[i], expected[i], shape);
    }
  }
  if (row.wrong.empty()) {
    const auto timings =
        time_interleaved({contestant(ours), contestant(theirs)}, num_repetitions_, kRowSeconds);
    row.ours = timings[0];
    row.baseline = timings[1];
  }
}

// Four times the last-level cache, and two of the caches at least.
const Buffer& AttentionTimer::arena(const AttentionShape& shape) {
  const std::size_t bytes =
      std::min(kMostArenaBytes, std::max(4 * last_level_cache_bytes(), 2 * cache_bytes(shape)));
  if (!arena_ || arena_->num_bytes() < bytes) {
    arena_ = nullptr;
    arena_ = std::make_unique<Buffer>(bytes);
    arena_dtype_ = DType::kFloat64;
  }
  if (arena_dtype_ != shape.dtype) {
    fill_normal(arena_->data(), shape.dtype, arena_->num_bytes() / element_bytes(shape.dtype), 2);
    arena_dtype_ = shape.dtype;
  }
  return *arena_;
}

const ReadRoof& AttentionTimer::roof(const Executor& executor) {
  ReadRoof& roof = read_roofs_[executor.num_workers()];
  if (roof.gb_s == 0.0) {
    roof = read_roof(executor, arena_->data(), arena_->num_bytes());
  }
  return roof;
}

void AttentionTimer::one_query(const AttentionShape& shape, const Executor& executor,
                               RatioRow& row) {
  set_sdpa_threads(executor.num_workers());
  const Caches caches(shape, arena(shape));
  std::vector<Sdpa> grouped = caches.baselines(SdpaForm::kGrouped);
  std::vector<Sdpa> expanded = caches.baselines(SdpaForm::kExpanded);
  std::vector<Sdpa> rows = caches.baselines(SdpaForm::kRows);
  const auto ours = [&](std::size_t i) {
    kernels::attention(caches.inputs(i), caches.outputs(), executor);
  };
  ours(0);
  expanded[0].forward();
  row.wrong = wrong_on_small(shape, Pass::kForward);
  row.wrong = row.wrong.empty() ? difference(caches.out(), expanded[0].out(), shape) : row.wrong;
  if (!row.wrong.empty()) {
    return;
  }
  const ReadForm form = roof(executor).form;
  const auto only_read = [&](std::size_t i) {
    read_memory(executor, caches.inputs(i).key.data, cache_bytes(shape), form);
  };
  const std::size_t n = caches.size();
  const auto timings = time_interleaved(
      {rotating(n, ours), rotating(n, [&](std::size_t i) { grouped[i].forward(); }),
       rotating(n, [&](std::size_t i) { expanded[i].forward(); }),
       rotating(n, [&](std::size_t i) { rows[i].forward(); }), rotating(n, only_read)},
      num_repetitions_, kRowSeconds);
  const bool is_grouped = timings[1].median_us <= timings[2].median_us;
  row.ours = timings[0];
  row.baseline = timings[is_grouped ? 1 : 2];
  row.backend = is_grouped ? grouped[0].backend() + ", enable_gqa"
                           : expanded[0].backend() + ", heads repeated by strides";
  row.other = timings[3];
  row.other_name = "heads as rows of one query";
  row.read_probe = timings[4];
  row.memory_roof_gb_s = std::max(roof(executor).gb_s, row.bytes / timings[4].low_us * 1e-3);
}

}  // namespace paperlab::bench
