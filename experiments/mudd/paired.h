#pragma once
// When a difference that several seeds decide counts: all of one sign, and the mean beyond two
// standard errors.

#include <vector>

namespace paperlab::experiments::mudd {

// Of differences paired by seed.
struct Gap {
  double mean = 0.0;
  double standard_error = 0.0;
  double least = 0.0;
  double num_positive = 0.0;  // not below 0
};

Gap gap_of(const std::vector<double>& differences);

// Whether the mean plus two standard errors is below 0, as every seed is.
bool counts_below(const Gap& gap);

// The mean of a gap that counts; else 0, or the mean above it.
double counted_below(const Gap& gap);

// For a gap that should be above 0: the mean if it less two standard errors is above 0, as every
// seed is; else the least of both, which is not above 0.
double counted_above(const Gap& gap);

}  // namespace paperlab::experiments::mudd
