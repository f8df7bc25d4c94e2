#pragma once
/// \file
/// What is read off a training curve: growth rates and the onset of logarithmic growth.
/// Source: Huang, Liang, Yang, ICML 2025, experiments; the definition of the onset is ours.

#include <cstdint>
#include <vector>

#include "paperlab/core/export.h"

namespace paperlab::regular_language {

struct Line {
  double slope = 0.0;
  double intercept = 0.0;
  double r_squared = 0.0;
};

/// Least-squares line through (x, y). \throws ShapeError unless x and y have one length >= 2.
PAPERLAB_API Line fit_line(const std::vector<double>& x, const std::vector<double>& y);

/// The step that maximizes d norm / d ln(step), by central differences over neighbouring records:
/// after it the curve bends to logarithmic growth. Records of step 0 are passed over.
/// \throws ShapeError unless `step` and `norm` have one length >= 4.
PAPERLAB_API std::int64_t log_growth_onset(const std::vector<std::int64_t>& step,
                                           const std::vector<double>& norm);

/// The first step from which on `accuracy` is 1 in every record; -1 if it is not in the last.
PAPERLAB_API std::int64_t perfect_from(const std::vector<std::int64_t>& step,
                                       const std::vector<double>& accuracy);

/// <a, b> / (|a| |b|). \throws ShapeError unless the lengths are equal.
PAPERLAB_API double cosine(const std::vector<double>& a, const std::vector<double>& b);

}  // namespace paperlab::regular_language
