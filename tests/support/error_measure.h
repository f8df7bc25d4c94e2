#pragma once
// How far a result is from the exact one, entry by entry; a NaN counts as infinitely far.

#include <gtest/gtest.h>

#include <span>

namespace paperlab::test {

// Passes if |actual[i] - exact[i]| <= bound * norm[i] for all i; else tells the worst entry: its
// index, both values and the bound. Where norm[i] is 0, actual[i] must be exact; elsewhere 1e-300
// is added to what is allowed, because doubles end there.
testing::AssertionResult is_close(std::span<const double> actual,
                                  std::span<const long double> exact,
                                  std::span<const long double> norm, double bound);

// The same for one number.
testing::AssertionResult is_close(double actual, long double exact, long double norm, double bound);

// Passes if the arrays hold the same bits; else tells the first difference.
testing::AssertionResult has_same_bits(std::span<const double> a, std::span<const double> b);

}  // namespace paperlab::test
