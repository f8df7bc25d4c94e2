#include "paperlab/regular_language/max_margin.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <string>

#include "paperlab/core/error.h"
#include "paperlab/regular_language/least_distance_internal.h"

namespace paperlab::regular_language {
namespace {

using detail::Index;
using detail::LeastDistance;
using detail::Matrix;
using detail::Real;
using detail::Rows;
using detail::Vector;

constexpr const char* kFunction = "max_margin";
constexpr Real kMaxGap = 1e-10L;
constexpr Real kDoubleRounding = 0x1p-53L;  // |<A, round(v) - v>| <= kDoubleRounding |A| |v|

std::string number(Real value) {
  char text[40];
  std::snprintf(text, sizeof text, "%.3Lg", value);
  return text;
}

Rows checked_rows(const std::vector<double>& features, const std::vector<double>& labels) {
  const std::size_t n = labels.size();
  require<ShapeError>(n > 0, kFunction, "labels must not be empty", "0 of them");
  require<ShapeError>(!features.empty() && features.size() % n == 0, kFunction,
                      "features must be [N, D] for the N = " + std::to_string(n) + " labels",
                      std::to_string(features.size()) + " values");
  for (const double y : labels) {
    if (y != 1.0 && y != -1.0) throw ValueError("max_margin: labels must be +-1, got " + number(y));
  }
  for (const double z : features) {
    if (!std::isfinite(z)) {
      throw ValueError("max_margin: features must be finite, got " + number(z));
    }
  }
  Rows rows(features, labels);
  require<ValueError>(rows.norms.minCoeff() > 0, kFunction,
                      "features must be separable by labels through the origin", "a zero row");
  return rows;
}

// Moves the coordinate by one unit in the last place that raises the least <a, v> most, over the
// columns a of `close`. False if none does.
bool nudge(const Matrix& close, Vector& v) {
  const Vector values = close.transpose() * v;
  Index worst = 0;
  Real most = values.minCoeff(&worst);
  Index at = -1;
  Real to = 0;
  for (Index d = 0; d < v.size(); ++d) {
    const double up = close(d, worst) > 0 ? 2.0 : -2.0;
    const Real moved = std::nextafter(static_cast<double>(v[d]), up);
    const Real least = (values + (moved - v[d]) * close.row(d).transpose()).minCoeff();
    if (least <= most) continue;
    most = least;
    at = d;
    to = moved;
  }
  if (at >= 0) v[at] = to;
  return at >= 0;
}

// The rows whose order near the margin the rounding of `unit` to double can change.
Matrix close_rows(const Rows& rows, const Vector& unit, Real margin) {
  std::vector<Index> close;
  for (Index n = 0; n < rows.norms.size(); ++n) {
    if (rows.dot(n, unit) <= margin + 64 * kDoubleRounding * rows.norms[n]) close.push_back(n);
  }
  Matrix result(unit.size(), static_cast<Index>(close.size()));
  for (std::size_t i = 0; i < close.size(); ++i) {
    result.col(static_cast<Index>(i)) = rows.norms[close[i]] * rows.unit(close[i]);
  }
  return result;
}

// `unit` in double. Rounding costs the margin about kDoubleRounding |A_n|, which is too much when
// it is below 1e-6 |A_n|; then lengths within 1.5e-14 of 1 are tried for a luckier rounding.
Vector rounded(const Rows& rows, const Vector& unit, Real goal) {
  constexpr int kNudges = 32;
  constexpr Real kMaxWork = 1e9L;  // multiplications, so that large problems end soon
  const Matrix close = close_rows(rows, unit, goal);
  const Real work = static_cast<Real>(rows.z.size()) + static_cast<Real>(close.size()) * kNudges;
  const int trials = static_cast<int>(std::min(512.0L, 1 + kMaxWork / work));
  Vector best;
  Real most = 0;
  for (int trial = 0; trial < trials; ++trial) {
    const Real length = 1 + (trial - (trial % 2) * 2 * trial) * 0x1p-55L;
    Vector v = (length * unit).cast<double>().cast<Real>();
    if (rows.margin(v) < goal * v.norm()) {
      for (int i = 0; i < kNudges && nudge(close, v); ++i) {
      }
    }
    const Real margin = rows.margin(v) / v.norm();
    if (trial > 0 && margin <= most) continue;
    best = v;
    most = margin;
    if (margin >= goal) break;
  }
  return best;
}

// (|v| bound / margin)^2 - 1: the primal value 1 / margin^2 against the dual value 1 / bound^2.
Real relative_gap(const Rows& rows, const Vector& v, Real bound) {
  const Real margin = rows.margin(v);
  if (!(margin > 0)) return std::numeric_limits<Real>::infinity();
  const Real ratio = bound * v.norm() / margin;
  return std::max<Real>(0, (ratio - 1) * (ratio + 1));
}

}  // namespace

MaxMargin max_margin(const std::vector<double>& features, const std::vector<double>& labels) {
  const Rows rows = checked_rows(features, labels);
  Real bound = rows.norms.minCoeff();
  std::string found = "a convex combination of the rows y z that is 0 to rounding";
  // Slack keeps rows much longer than the margin clear of the rounding.
  for (const Real slack : {0.0L, kDoubleRounding, kDoubleRounding / 32}) {
    LeastDistance problem(rows, (bound * rows.norms.cwiseInverse()).array() + slack);
    if (!problem.solve()) break;
    bound = std::min(bound, problem.margin_bound());  // also a better scale for the next attempt
    found = "no certificate beyond a margin of at most " + number(bound);
    const Vector unit = problem.direction().normalized();
    if (relative_gap(rows, unit, bound) > kMaxGap) continue;
    const Vector v = rounded(rows, unit, bound * (1 - 0.45L * kMaxGap));
    const Real gap = relative_gap(rows, v, bound);
    if (gap > kMaxGap) continue;
    const Eigen::VectorXd direction = v.cast<double>();
    const auto margin = static_cast<double>(rows.margin(v));
    require<ValueError>(std::isfinite(margin), "max_margin",
                        "features must be small enough that the margin is a finite double",
                        "an overflow");
    return {{direction.begin(), direction.end()}, margin, static_cast<double>(gap)};
  }
  throw ValueError(
      "max_margin: features must be separable by labels through the origin, with a margin that a "
      "direction in double can hold, got " +
      found);
}

}  // namespace paperlab::regular_language
