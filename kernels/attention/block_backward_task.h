#pragma once
// What blocks of the backward pass are given, and delta = dO . O - dL of every row.

#include "kernels/attention/block_rows.h"
#include "kernels/common/cuda/elements.h"
#include "kernels/common/cuda/reduce.h"

namespace paperlab::kernels {

struct BackwardLaunch {
  AttentionLaunch attention;
  AttentionBackwardInputs forward;
  AttentionGradients gradients;
  void* delta;  // [B, H, T], NumberOf<T>
  bool is_whole_gradient;
};

constexpr int kDeltaThreads = 256;
constexpr int kDeltaRowThreads = 8;
constexpr int kDeltaRows = kDeltaThreads / kDeltaRowThreads;

template <class Number>
struct DeltaRegisters {
  Number sum;
};

// delta of rows first..first + kDeltaRows - 1 of B * H * T.
template <class E, class T>
PAPERLAB_HD void delta_block(T& team, const BackwardLaunch& launch, std::int64_t first) {
  using Number = NumberOf<E>;
  const ConstTensorView& out = launch.forward.out;
  const ConstTensorView& grad = launch.forward.grad_out;
  const std::int64_t num_rows = out.size[0] * out.size[1] * out.size[2];
  const auto row_in = [&](const ConstTensorView& view, std::int64_t row) {
    const std::int64_t head = row / view.size[2];
    return static_cast<const E*>(view.data) + head / view.size[1] * view.stride[0] +
           head % view.size[1] * view.stride[1] + row % view.size[2] * view.stride[2];
  };
  team.each([&](int thread, DeltaRegisters<Number>& own) {
    const std::int64_t row = first + thread / kDeltaRowThreads;
    own.sum = 0;
    for (std::int64_t pack = thread % kDeltaRowThreads;
         row < num_rows && pack < num_packs<E>(out.size[3]); pack += kDeltaRowThreads) {
      Number a[kPackSize<E>];
      Number b[kPackSize<E>];
      const std::int64_t at = pack * kPackSize<E>;
      unpack<E>(load_of_row(row_in(out, row), at, out.size[3], launch.attention.is_whole), a);
      unpack<E>(load_of_row(row_in(grad, row), at, out.size[3], launch.attention.is_whole), b);
      PAPERLAB_UNROLL
      for (int i = 0; i < kPackSize<E>; ++i) {
        own.sum = fused(a[i], b[i], own.sum);
      }
    }
  });
  sum_neighbours(team, kDeltaRowThreads,
                 [](int, DeltaRegisters<Number>& own) -> Number& { return own.sum; });
  team.each([&](int thread, DeltaRegisters<Number>& own) {
    const std::int64_t row = first + thread / kDeltaRowThreads;
    if (thread % kDeltaRowThreads == 0 && row < num_rows) {
      const auto* grad_lse = static_cast<const Number*>(launch.forward.grad_lse);
      static_cast<Number*>(launch.delta)[row] =
          grad_lse == nullptr ? own.sum : own.sum - grad_lse[row];
    }
  });
}

// ---------------------------------------------------------------------------------------------

// One block's work in the gradients of keys: a block of a stream's keys of one head.
struct KeyTask {
  std::int64_t batch;
  std::int64_t head;  // of the stream
  std::int64_t first_unit;
  std::int64_t num_units;  // that share the head
  KeyBlock block;
  KeyBlock part;  // that exists
};

PAPERLAB_HD inline std::int64_t num_stream_tasks(const ConstTensorView& key, int edge) {
  return key.data == nullptr ? 0 : key.size[0] * key.size[1] * ceil_div(key.size[2], edge);
}

PAPERLAB_HD inline std::int64_t num_key_tasks(const AttentionInputs& in, int edge) {
  return num_stream_tasks(in.prefix_key, edge) +
         (in.key.size[2] == 0 ? 0 : num_stream_tasks(in.key, edge));
}

// Prefix entries first, which most rows see; then the keys, the first ones first.
PAPERLAB_HD inline KeyTask key_task(const AttentionLaunch& launch, std::int64_t index, int edge) {
  const std::int64_t num_prefix = num_stream_tasks(launch.in.prefix_key, edge);
  const bool is_prefix = index < num_prefix;
  const ConstTensorView& key = is_prefix ? launch.in.prefix_key : launch.in.key;
  const std::int64_t number = is_prefix ? index : index - num_prefix;
  const std::int64_t heads = key.size[0] * key.size[1];
  const std::int64_t begin = number / heads * edge;
  const std::int64_t head = number % heads % key.size[1];
  const std::int64_t units = launch.rows.num_units / key.size[1];
  return {number % heads / key.size[1],
          head,
          head * units,
          units,
          {is_prefix, begin, begin + edge},
          {is_prefix, begin, smaller(begin + edge, key.size[2])}};
}

// The part of a key block that some row of a unit sees: no other key is read.
PAPERLAB_HD inline KeyBlock seen_by_unit(const AttentionLaunch& launch, const KeyTask& task) {
  const TileKeys keys = keys_of_tile(
      launch, {{task.batch, task.first_unit}, 0, static_cast<int>(launch.rows.num_rows)});
  return seen_part(task.part, keys);
}

// ---------------------------------------------------------------------------------------------

// Gradients of queries: through both streams at once where they share the query, else each its own.
struct QueryPass {
  KeySpan span;
  TensorView to;
};

PAPERLAB_HD inline int num_query_passes(const BackwardLaunch& launch) {
  return launch.gradients.prefix_query.data == nullptr ? 1 : 2;
}

PAPERLAB_HD inline QueryPass query_pass(const BackwardLaunch& launch, const KeySpan& span,
                                        int index) {
  if (num_query_passes(launch) == 1) {
    return {span, launch.gradients.query};
  }
  return index == 0 ? QueryPass{{0, span.prefix_end, 0, 0}, launch.gradients.prefix_query}
                    : QueryPass{{0, 0, span.begin, span.end}, launch.gradients.query};
}

}  // namespace paperlab::kernels
