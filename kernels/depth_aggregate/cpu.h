#pragma once
// What cpu.cpp exports once per instruction set: runs of tokens in float32 and bfloat16.

#include "kernels/depth_aggregate/depth_aggregate.h"
#include "kernels/depth_aggregate/tile.h"

namespace paperlab::kernels {

// The generator's parameters in float32; rows are padded with zeros to padded(columns).
struct GeneratorPanels {
  const float* w1;    // [D, K]
  const float* w2;    // [K, C J]
  const float* bias;  // [C J]
};

// The same turned over, for the backward pass; rows are padded to padded(columns).
struct GradientPanels {
  const float* w1;  // [K, D]
  const float* w2;  // [C J, K]
};

// What the parameters' gradients are made of: gelu(z), and the gradient of z times r. Rows of the
// tokens from `begin` on.
struct GeneratorRows {
  float* h;       // [., K]
  float* grad_z;  // [., K]
  std::int64_t begin;
};

struct DepthAggregateCpu {
  // Rows of `columns` numbers as float32, each padded with zeros.
  void (*pack)(const void* from, DType dtype, std::int64_t columns, TokenRange rows, float* to);
  // Columns `range` of a matrix [rows, columns] as rows, likewise.
  void (*pack_transposed)(const void* from, DType dtype, std::int64_t rows, std::int64_t columns,
                          TokenRange range, float* to);
  // to = a + b, elements begin..end-1.
  void (*add)(DType dtype, const void* a, const void* b, TokenRange elements, void* to);
  // Weights, z and inverse_rms of the tokens; scratch: padded(K) numbers a token.
  void (*generate)(const ConnectionWeights& problem, const GeneratorPanels& panels,
                   const ConnectionWeightsResult& result, TokenRange tokens, float* scratch);
  // The streams of the tokens.
  void (*forward)(const DepthAggregate& problem, void* const* out, TokenRange tokens,
                  bool is_past_caches);
  // The gradients of the tokens. Where the weights are the same for all, sums [C J] is set to their
  // part of the weights' gradient. scratch: backward_scratch numbers.
  void (*backward)(const DepthAggregate& problem, const DepthAggregateGradients& gradients,
                   TokenRange tokens, float* scratch, float* sums);
  // The tokens' rows, and their part of the state's gradient. scratch: generate_scratch numbers.
  void (*generate_backward)(const ConnectionWeights& problem,
                            const ConnectionWeightsGradients& gradients,
                            const GradientPanels& panels, const GeneratorRows& rows,
                            TokenRange tokens, float* scratch);
  // sums [columns] += rows of a matrix [rows, columns], in order.
  void (*add_rows)(const float* from, std::int64_t rows, std::int64_t columns, float* sums);
  // `count` numbers as `dtype`.
  void (*narrow)(const float* from, std::int64_t count, DType dtype, void* to);
};

// A vector of at most 16 lanes for each weight of a run's tokens, and room for their sums.
PAPERLAB_HD constexpr std::int64_t backward_scratch(std::int64_t num_weights) {
  return padded(num_weights) * (16 * kRunTokens + 1);
}

// Of generate_backward.
PAPERLAB_HD constexpr std::int64_t generate_scratch(std::int64_t tokens, std::int64_t width) {
  return padded(tokens) + tokens * padded(width);
}

namespace generic {
DepthAggregateCpu depth_aggregate_cpu();
}
namespace avx2 {
DepthAggregateCpu depth_aggregate_cpu();
}
namespace avx512 {
DepthAggregateCpu depth_aggregate_cpu();
}

}  // namespace paperlab::kernels
