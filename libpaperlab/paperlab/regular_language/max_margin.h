#pragma once
/// \file
/// Hard-margin separation without a bias, solved exactly.
/// Source: Huang, Liang, Yang, "How Transformers Learn Regular Language Recognition", ICML 2025,
/// Thm 4.4 (u* = argmin |u| subject to y_n <u, z_n> >= 1).

#include <cstddef>
#include <vector>

#include "paperlab/core/export.h"

namespace paperlab::regular_language {

struct MaxMargin {
  std::vector<double> direction;  ///< [D] unit vector v maximizing min_n y_n <v, z_n>.
  double margin = 0.0;  ///< min_n y_n <direction, z_n>, in the units of the features; > 0.
  double gap = 0.0;     ///< Relative duality gap of |u*|^2, in 0..1e-10.
};

/// Finds the max-margin direction of N labelled feature vectors.
///
/// \param features  row-major [N, D], finite; D = features.size() / labels.size().
/// \param labels    [N], each +1 or -1.
/// \throws ShapeError  if labels is empty or features.size() is not a positive multiple of N.
/// \throws ValueError  if a label is not +-1, a feature is not finite, or the data are not
///                     separable through the origin (a zero row is not; "separable" is in what()).
///
/// Deterministic, single-threaded; always ends. Least-distance programming (Lawson and Hanson 1974,
/// ch. 23) in long double: O(N D) time a step and about D steps, at most 3000 + 300 D.
/// The gap holds for `direction` as returned. In double it can be met when the margin is above
/// about 1e-7 of the norms of the rows that attain it; data with a smaller margin may count as not
/// separable.
PAPERLAB_API MaxMargin max_margin(const std::vector<double>& features,
                                  const std::vector<double>& labels);

}  // namespace paperlab::regular_language
