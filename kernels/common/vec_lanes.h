#pragma once
// Sums and folds across the lanes of a vector, in a fixed order. Include only from a kernel's
// cpu.cpp (see vec.h).

#include "kernels/common/vec_float.h"

namespace paperlab::kernels::PAPERLAB_ISA {
namespace {

// x with lanes i and i ^ Step exchanged.
template <int Step>
inline VecF exchanged(VecF x) {
  VecI other;
  for (std::int64_t i = 0; i < kFloatLanes; ++i) {  // a constant
    other[i] = i ^ Step;
  }
  return shuffled(x, x, other);
}

// Sums of lanes i and i ^ Step: a's where bit Step of i is clear, b's where it is set. Two blends
// and a shuffle within one register are cheaper than two shuffles of two.
template <int Step>
inline VecF paired_sums(VecF a, VecF b) {
  VecI is_b;
  for (std::int64_t i = 0; i < kFloatLanes; ++i) {  // a constant
    is_b[i] = (i & Step) != 0 ? -1 : 0;
  }
  return (is_b ? b : a) + exchanged<Step>(is_b ? a : b);
}

// One vector whose lane i is the sum over lanes of terms[i].
template <int Step = 1>
inline VecF sum_lanes(VecF (&terms)[kFloatLanes]) {
  if constexpr (Step < kFloatLanes) {
#pragma GCC unroll 8
    for (std::int64_t i = 0; i < kFloatLanes / Step; i += 2) {
      terms[i / 2] = paired_sums<Step>(terms[i], terms[i + 1]);
    }
    return sum_lanes<2 * Step>(terms);
  } else {
    return terms[0];
  }
}

// Folds the lanes of x with `fold`, in a fixed order.
template <int Step = 1, class F>
inline float fold_lanes(VecF x, F fold) {
  if constexpr (Step < kFloatLanes) {
    return fold_lanes<2 * Step>(fold(x, exchanged<Step>(x)), fold);
  } else {
    return x[0];
  }
}

}  // namespace
}  // namespace paperlab::kernels::PAPERLAB_ISA
