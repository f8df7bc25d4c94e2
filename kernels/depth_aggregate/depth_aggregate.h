#pragma once
// Depth-wise aggregation: streams of a decoder as weighted sums over the outputs of its blocks so
// far, with weights that each token generates from the newest of them. For token n, way c and
// sources X_0 .. X_(J-1), each [N, D]:
//   N_x = X_(J-1) / sqrt(mean(X_(J-1)^2) + eps),  Z = N_x W1,  A = gelu(Z) W2 + a   [N, C J]
//   out_c[n] = sum over j of A[n, c J + j] X_j[n]
// forward and backward.
// Source: Xiao, Meng, Li, Yuan, "MUDDFormer", ICML 2025, arXiv:2502.12170, Eqs. (3) to (8).
// Needs LibTorch: no. float32 and bfloat16 accumulate in float32, float64 in float64. The same bits
// for every executor and from run to run if the injected product has them.

#include <cstdint>

#include "kernels/common/gemm_problem.h"

namespace paperlab::kernels {

enum class GeluForm : std::uint8_t { kExact, kTanh };

// The weights of N tokens from their states x. All is of `dtype`, contiguous.
struct ConnectionWeights {
  DType dtype = DType::kFloat32;
  std::int64_t num_tokens = 0;   // N
  std::int64_t width = 0;        // D
  std::int64_t hidden_size = 0;  // K
  std::int64_t num_weights = 0;  // C J
  double eps = 1e-6;
  GeluForm gelu = GeluForm::kExact;
  const void* x = nullptr;     // [N, D]
  const void* w1 = nullptr;    // [D, K]
  const void* w2 = nullptr;    // [K, C J]
  const void* bias = nullptr;  // [C J], a
  // w1 is [K, D] and w2 [C J, K] instead, as linear layers have them; their gradients likewise.
  bool is_transposed = false;
};

// What the forward pass leaves. Statistics are float32 (float64 for float64).
struct ConnectionWeightsResult {
  void* weights = nullptr;  // [N, C J], statistics' type
  void* z = nullptr;        // [N, K], statistics' type, for the backward pass; absent: not wanted
  void* inverse_rms = nullptr;  // [N], likewise; not written where K is 0
};

struct ConnectionWeightsGradients {
  const void* z = nullptr;
  const void* inverse_rms = nullptr;
  const void* grad_weights = nullptr;  // [N, C J], statistics' type
  // What is absent is not wanted; all of `dtype`.
  void* grad_x = nullptr;       // [N, D]
  bool adds_to_grad_x = false;  // else it is overwritten
  void* grad_w1 = nullptr;
  void* grad_w2 = nullptr;
  void* grad_bias = nullptr;
};

// The sum. Sources and streams are of `dtype`, contiguous, each where its pointer says, so that
// they may be slots of one buffer or tensors of their own.
struct DepthAggregate {
  DType dtype = DType::kFloat32;
  std::int64_t num_tokens = 0;           // N
  std::int64_t width = 0;                // D
  std::int64_t num_sources = 0;          // J >= 1
  std::int64_t num_ways = 0;             // C >= 1
  const void* const* sources = nullptr;  // [J] of [N, D]
  const void* weights = nullptr;  // way c, source j of token n: [n token_stride + c way_stride + j]
  DType weights_dtype = DType::kFloat32;  // float32, or `dtype`
  std::int64_t token_stride = 0;          // 0: the same for all tokens
  std::int64_t way_stride = 0;
};

struct DepthAggregateGradients {
  const void* const* grad_out = nullptr;  // [C] of [N, D]; an absent one is zeros
  // [J] of [N, D]; what is absent is not wanted.
  void* const* grad_sources = nullptr;
  // The first so many of grad_sources are added to, the others overwritten.
  std::int64_t num_added = 0;
  // Laid out as the weights and of statistics' type (with token_stride 0 summed over the tokens, in
  // an order that is a function of shapes alone); absent: not wanted.
  void* grad_weights = nullptr;
};

// Write weights, z and inverse_rms; the gradients that are wanted. The parameters' gradients are
// products over the tokens, which `multiply` makes. Throw ShapeError for sizes below 0, D < 1 or
// C J < 1, ValueError unless eps > 0.
void connection_weights(const ConnectionWeights& problem, const ConnectionWeightsResult& result,
                        const Executor& executor);
void connection_weights_backward(const ConnectionWeights& problem,
                                 const ConnectionWeightsGradients& gradients, GemmFunction multiply,
                                 const Executor& executor);

// Writes the streams. Large ones are stored past the caches (tile.h). Throw ShapeError for N < 0 or
// other sizes below 1, ValueError for weights of another dtype or num_added outside 0..J.
// \param out  [C] of [N, D]; no source.
void depth_aggregate(const DepthAggregate& problem, void* const* out, const Executor& executor);
void depth_aggregate_backward(const DepthAggregate& problem,
                              const DepthAggregateGradients& gradients, const Executor& executor);

// Both at once, block of tokens by block of tokens, so that the newest state is read once; before
// them the newest state itself, where it is a sum that nobody has written yet.
struct DepthStep {
  // x: sources[J-1]. Where K is 0 the weights are `bias` alone, or given, without result.weights.
  ConnectionWeights generator;
  // weights: result.weights, token_stride C J, way_stride J. Those that are given lie anyhow.
  DepthAggregate aggregate;
  const void* base = nullptr;  // absent: sources[J-1] is there already
  const void* delta = nullptr;
  void* newest = nullptr;  // sources[J-1] = base + delta, rounded to `dtype`
};

// Throws as its parts do; ValueError where they do not belong together.
void depth_step(const DepthStep& problem, const ConnectionWeightsResult& result, void* const* out,
                const Executor& executor);

// Gradients of the sum and of the generator; that of the newest source has both parts. Where all
// tokens have the same weights, grad_weights [C, J] is also the bias's gradient.
struct DepthStepGradients {
  DepthAggregateGradients aggregate;     // grad_weights: scratch [N, C J] of statistics' type
  ConnectionWeightsGradients generator;  // grad_x and grad_weights are those of `aggregate`
};

void depth_step_backward(const DepthStep& problem, const DepthStepGradients& gradients,
                         GemmFunction multiply, const Executor& executor);

// The definitions, in float64 whatever the dtype (reference.cpp).
void connection_weights_reference(const ConnectionWeights& problem,
                                  const ConnectionWeightsResult& result);
void connection_weights_backward_reference(const ConnectionWeights& problem,
                                           const ConnectionWeightsGradients& gradients);
void depth_aggregate_reference(const DepthAggregate& problem, void* const* out);
void depth_aggregate_backward_reference(const DepthAggregate& problem,
                                        const DepthAggregateGradients& gradients);

}  // namespace paperlab::kernels
