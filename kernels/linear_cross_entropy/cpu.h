#pragma once
// What works on chunks of logits: cpu.cpp exports it for float32 once per instruction set,
// float64.cpp for float64.

#include "kernels/linear_cross_entropy/linear_cross_entropy.h"
#include "kernels/linear_cross_entropy/tile.h"

namespace paperlab::kernels {

// Logits of `rows` and `columns` of all, rows `stride` apart.
struct LogitsChunk {
  void* data;
  std::int64_t stride;
  IndexRange rows;
  IndexRange columns;
};

// Of a row's logits so far: the sum is of e^(logit - most).
struct RowState {
  double most;
  double sum;
  double of_target;
};

// Of a row: the gradient of logit v is factor e^(logit - lse) - [v = target] onehot.
struct RowGradient {
  double lse;
  double factor;
  double onehot;  // 0: the gradients are 0, whatever the logits are
};

struct LogitsCpu {
  // Adds the logits of rows `first`.. of the chunk to their states; targets and states are those
  // of all rows.
  void (*add_logits)(const LogitsChunk& chunk, IndexRange rows, const std::int64_t* target,
                     RowState* states);
  // Replaces logits by their gradients.
  void (*to_gradients)(const LogitsChunk& chunk, IndexRange rows, const std::int64_t* target,
                       const RowGradient* rows_of_all);
  // sums[v] += the chunk's column v, for `columns` of all.
  void (*add_columns)(const LogitsChunk& chunk, IndexRange columns, void* sums);
  // to += from.
  void (*add)(const void* from, std::int64_t count, void* to);
  // bfloat16 and float32; absent for float64.
  void (*widen)(const std::uint16_t* from, std::int64_t count, float* to);
  void (*narrow)(const float* from, std::int64_t count, std::uint16_t* to);
};

LogitsCpu logits_float64();
namespace generic {
LogitsCpu logits_cpu();
}
namespace avx2 {
LogitsCpu logits_cpu();
}
namespace avx512 {
LogitsCpu logits_cpu();
}

}  // namespace paperlab::kernels
