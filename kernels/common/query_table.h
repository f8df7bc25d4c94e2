#pragma once
// The exponentials of one query and the gradient of one string, for the CPU kernels (see vec.h).

#include "kernels/common/one_layer.h"
#include "kernels/common/vec_math.h"

namespace paperlab::kernels::PAPERLAB_ISA {
namespace {

inline double larger(double a, double b) { return a > b ? a : b; }

// The largest lane.
inline double largest(Vec8d a) {
  double x[kLanes];
  store(x, a);
  return larger(larger(larger(x[0], x[1]), larger(x[2], x[3])),
                larger(larger(x[4], x[5]), larger(x[6], x[7])));
}

// Writes e[i] = exp((w[i] - max) / scale) and eu[i] = e[i] u[i] for i < n; both arrays have room
// for a whole vector at the end. Entry `unused` (the last position's other token) takes no part.
// Returns (max - min) / scale, which tells whether every string's Z is far from underflow.
inline double query_table(const double* w, const double* u, int n, int unused, double scale,
                          double* e, double* eu) {
  Vec8d highs = set1(-__builtin_inf());
  Vec8d lows = highs;  // of -w
  for (std::ptrdiff_t i = 0; i < n; i += kLanes) {
    const std::ptrdiff_t count = n - i < kLanes ? n - i : kLanes;
    unsigned used = 0xFFU >> static_cast<unsigned>(kLanes - count);
    if (unused >= i && unused < i + kLanes) {
      used &= ~(1U << static_cast<unsigned>(unused - i));
    }
    const Vec8d x = load_first(w + i, count);
    const Vec8d minus = zero() - x;
    highs = select(static_cast<std::uint8_t>(used & greater(x, highs)), x, highs);
    lows = select(static_cast<std::uint8_t>(used & greater(minus, lows)), minus, lows);
  }
  const double high = largest(highs);
  for (std::ptrdiff_t i = 0; i < n; i += kLanes) {
    const std::ptrdiff_t count = n - i < kLanes ? n - i : kLanes;
    const Vec8d value = exp((load_first(w + i, count) - set1(high)) / set1(scale));
    store(e + i, value);
    store(eu + i, value * load_first(u + i, count));
  }
  e[unused] = 0.0;
  eu[unused] = 0.0;
  return (high + largest(lows)) / scale;
}

struct StringGradient {
  Vec8d q;
  Vec8d r;
};

// Q = c / Z and R = c T / Z of eight strings of label y, c = -y weight / (1 + exp(y T)).
inline StringGradient string_gradient(Vec8d z, Vec8d n, double y, double weight) {
  const Vec8d inverse = set1(1.0) / z;
  const Vec8d t = n * inverse;
  const Vec8d c = set1(-y * weight) / (set1(1.0) + exp(set1(y) * t));
  const Vec8d q = c * inverse;
  return {q, q * t};
}

// Adds the margins m = y T of the first `count` lanes to `out`; the loss is
// max(0, -m) + log1p(exp(-|m|)), finite for every finite m.
inline void add_margins(Vec8d m, int count, double weight, OneLayerEvaluation& out) {
  double margin[kLanes];
  double decay[kLanes];
  store(margin, m);
  store(decay, exp(select(greater(m, zero()), zero() - m, m)));
  for (int lane = 0; lane < count; ++lane) {
    const double hinge = margin[lane] < 0.0 ? -margin[lane] : 0.0;
    out.loss += weight * (hinge + __builtin_log1p(decay[lane]));
    out.min_margin = margin[lane] < out.min_margin ? margin[lane] : out.min_margin;
    out.num_correct += margin[lane] > 0.0 ? 1 : 0;
  }
  out.num_strings += count;
}

}  // namespace
}  // namespace paperlab::kernels::PAPERLAB_ISA
