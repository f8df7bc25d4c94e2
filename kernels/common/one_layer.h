#pragma once
// One softmax-attention layer with a linear read-out over (position, token) embeddings, as seen by
// the kernels: binary tokens, the last token is the only query.
//   phi_l = softmax_l(W[(l, x_l), (L, x_L)] / lambda),  T = sum_l phi_l u[(l, x_l)]
//   loss  = sum_n weight_n log(1 + exp(-y_n T_n))
// Source: Huang, Liang, Yang, ICML 2025 (model, logistic loss).

#include <cstddef>
#include <cstdint>

#include "paperlab/core/host_device.h"

namespace paperlab::kernels {

// Entry of (position l, token s) in u and in a row or column of W; l counts from 0.
PAPERLAB_HD constexpr int embedding_index(int l, int s) { return 2 * l + s; }

// u is [2 Lmax]; w is [2 Lmax queries, 2 Lmax keys]: one query's keys are contiguous (the transpose
// of the public matrix).
struct OneLayerParameters {
  int max_length = 0;
  double attention_scale = 1.0;  // lambda
  const double* u = nullptr;
  const double* w = nullptr;
};

// dLoss/du and dLoss/dw in the layout of OneLayerParameters; every element is written.
struct OneLayerGradient {
  double* u = nullptr;
  double* w = nullptr;
};

// What a look at every string tells.
struct OneLayerEvaluation {
  double loss = 0.0;
  double min_margin = 0.0;       // min y T
  std::int64_t num_correct = 0;  // y T > 0, strictly
  std::int64_t num_strings = 0;
};

// Of one query (L, q) the exponentials e[(l, s)] = exp((W[(l, s)] - max) / lambda) and e u. With
// them Z = sum_l e and N = sum_l e u of a string's tokens give T = N / Z without any exp per
// string.
struct QueryTable {
  const double* e;   // [2 L]
  const double* eu;  // [2 L]
};

// (max - min) / lambda of a query's logits up to which every string's Z is accurate: exp(-600) is
// far above underflow.
constexpr double kMaxSpread = 600.0;

// Sums over strings of Q = c / Z and R = c T / Z with c = dLoss/dT, by position and its token.
// Gradients follow from these alone:
//   du[(l, s)] += e Q,   dW[(l, s), (L, q)] = e (u Q - R) / lambda
struct Marginal {
  double q;
  double r;
};

PAPERLAB_HD inline double u_gradient(double e, Marginal m) { return e * m.q; }
PAPERLAB_HD inline double w_gradient(double e, double u, Marginal m, double scale) {
  return e * (u * m.q - m.r) / scale;
}

}  // namespace paperlab::kernels
