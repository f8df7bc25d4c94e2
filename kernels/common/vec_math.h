#pragma once
// exp on eight doubles: the same bits on every instruction set, error below one ulp (tested).

#include "kernels/common/vec.h"

namespace paperlab::kernels::PAPERLAB_ISA {
namespace {

// exp(x) = 2^n exp(r), n = round(x / ln 2), |r| <= ln(2) / 2; exp(r) by its Taylor polynomial of
// degree 13, whose remainder is below 5e-18. Results below the smallest normal number are 0.
inline Vec8d exp(Vec8d x) {
  const Vec8d magic = set1(0x1.8p52);  // the sum's low bits hold the rounded integer
  const Vec8d shifted = fma(x, set1(0x1.71547652b82fep0), magic);
  const Vec8d n = shifted - magic;
  Vec8d r = fma(n, set1(-0x1.62e42fefa39efp-1), x);
  r = fma(n, set1(-0x1.abc9e3b39803fp-56), r);
  // exp(r) = 1 + (r + r^2 tail(r)); the tail's coefficients 1/2!..1/13! pairwise, because a chain
  // of 13 dependent additions would be the longest part of a short string's step.
  const Vec8d r2 = r * r;
  const Vec8d r4 = r2 * r2;
  const auto pair = [r](double even, double odd) {
    return fma(set1(1.0 / odd), r, set1(1.0 / even));
  };
  const Vec8d low = fma(pair(24.0, 120.0), r2, pair(2.0, 6.0));
  const Vec8d middle = fma(pair(40320.0, 362880.0), r2, pair(720.0, 5040.0));
  const Vec8d high = fma(pair(479001600.0, 6227020800.0), r2, pair(3628800.0, 39916800.0));
  const Vec8d tail = fma(fma(high, r4, middle), r4, low);
  const Vec8d p = set1(1.0) + fma(r2, tail, r);
  Vec8d y = add_exponent(p, shifted);
  y = select(greater(x, set1(0x1.62e42fefa39efp+9)), set1(__builtin_inf()), y);  // 709.78...
  y = select(greater(set1(-0x1.6232bdd7abcd2p+9), x), zero(), y);                // -708.39...
  return select(unordered(x), x, y);
}

}  // namespace
}  // namespace paperlab::kernels::PAPERLAB_ISA
