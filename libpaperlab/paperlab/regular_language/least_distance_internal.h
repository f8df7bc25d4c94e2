#pragma once
/// \file
/// Private to max_margin.cpp: least-distance programming in long double.
/// Source: Lawson and Hanson, Solving Least Squares Problems (1974), ch. 23.

#include <Eigen/Dense>
#include <algorithm>
#include <cstddef>
#include <limits>
#include <vector>

namespace paperlab::regular_language::detail {

using Eigen::Index;
using Real = long double;
using Vector = Eigen::Matrix<Real, Eigen::Dynamic, 1>;
using Matrix = Eigen::Matrix<Real, Eigen::Dynamic, Eigen::Dynamic>;

constexpr Real kEpsilon = std::numeric_limits<Real>::epsilon();

// The rows A_n = y_n z_n and their norms.
struct Rows {
  Rows(const std::vector<double>& features, const std::vector<double>& signs)
      : labels(signs.data()),
        z(features.data(), static_cast<Index>(features.size() / signs.size()),
          static_cast<Index>(signs.size())),
        norms(z.cols()) {
    for (Index n = 0; n < z.cols(); ++n) norms[n] = z.col(n).cast<Real>().norm();
  }

  Vector unit(Index n) const { return labels[n] / norms[n] * z.col(n).cast<Real>(); }
  Real dot(Index n, const Vector& v) const { return labels[n] * z.col(n).cast<Real>().dot(v); }

  Real margin(const Vector& v) const {
    Real least = dot(0, v);
    for (Index n = 1; n < z.cols(); ++n) least = std::min(least, dot(n, v));
    return least;
  }

  const double* labels;
  Eigen::Map<const Eigen::MatrixXd> z;  // [D, N]: one feature vector per column
  Vector norms;
};

// The factors Q R of the columns in use; Gram-Schmidt twice on entry, Givens rotations on leaving.
class Factors {
 public:
  explicit Factors(Index size) : q_(size, size), r_(Matrix::Zero(size, size)) {}

  bool push(Vector column) {
    if (count_ == q_.cols()) return false;
    const auto q = q_.leftCols(count_);
    r_.col(count_).setZero();
    for (int pass = 0; pass < 2; ++pass) {
      const Vector along = q.transpose() * column;
      column -= q * along;
      r_.col(count_).head(count_) += along;
    }
    const Real distance = column.norm();
    if (distance <= 16 * kEpsilon) return false;
    r_(count_, count_) = distance;
    q_.col(count_++) = column / distance;
    return true;
  }

  void erase(Index at) {
    --count_;
    for (Index j = at; j < count_; ++j) {
      r_.col(j).head(j + 2) = r_.col(j + 1).head(j + 2);
    }
    for (Index j = at; j < count_; ++j) {
      Eigen::JacobiRotation<Real> rotation;
      rotation.makeGivens(r_(j, j), r_(j + 1, j));
      r_.middleCols(j, count_ - j).applyOnTheLeft(j, j + 1, rotation.adjoint());
      q_.applyOnTheRight(j, j + 1, rotation);
    }
  }

  // argmin_x |E x - e_0|, E the columns in use.
  Vector weights() const {
    return r_.topLeftCorner(count_, count_)
        .triangularView<Eigen::Upper>()
        .solve(q_.row(0).head(count_).transpose());
  }

  // e_0 - E weights(). The repeated projection makes it orthogonal to E relative to its own length.
  Vector residual() const {
    const auto q = q_.leftCols(count_);
    Vector rest = Vector::Unit(q_.rows(), 0);
    for (int pass = 0; pass < 3; ++pass) rest -= q * (q.transpose() * rest).eval();
    return rest;
  }

 private:
  Index count_ = 0;
  Matrix q_;
  Matrix r_;
};

// argmin |u| s.t. <A_n/|A_n|, u> >= heights_n is -r_{1..D} / r_0 for the residual r of the
// non-negative least-squares problem min_{x >= 0} |E x - e_0|, whose columns are
// (heights_n, A_n/|A_n|). r = 0 iff there is no such u. Every step lowers |r|, so no set of columns
// comes twice. Unit columns keep rows of very different norms equally accurate.
class LeastDistance {
 public:
  LeastDistance(const Rows& rows, const Vector& heights)
      : rows_(rows), heights_(heights), factors_(rows.z.rows() + 1), used_(heights.size(), 0) {}

  // Runs to the optimum, or until rounding hides the next step. False if r = 0 to rounding.
  bool solve() {
    const Index size = rows_.z.rows();
    residual_ = factors_.residual();
    for (Index step = 0; step < 1000 + 100 * size; ++step) {
      const Index entering = most_violated();
      if (entering < 0 || !insert(entering)) return true;
      residual_ = factors_.residual();
      // |r| / sum x is the distance of the hull of the unit rows from 0; this is its rounding
      // error.
      if (direction().norm() <= 4 * (size + 16) * kEpsilon * weights_.sum()) return false;
    }
    return true;
  }

  Vector direction() const { return -residual_.tail(rows_.z.rows()); }

  // The norm of a convex combination of the rows A_n: no unit vector has a larger margin.
  Real margin_bound() const {
    Vector sum = Vector::Zero(rows_.z.rows());
    Real total = 0;
    for (std::size_t i = 0; i < active_.size(); ++i) {
      const Real weight = weights_[static_cast<Index>(i)];
      sum += weight * rows_.unit(active_[i]);
      total += weight / rows_.norms[active_[i]];
    }
    return sum.norm() / total;
  }

 private:
  Index most_violated() const {
    constexpr Real kTolerance = 1e-13L;  // relative to the height: moves the gap by 2e-13
    const Vector u = direction();
    Index worst = -1;
    Real most = 0;
    for (Index n = 0; n < heights_.size(); ++n) {
      const Real height = heights_[n] * residual_[0];
      const Real violation = height - rows_.dot(n, u) / rows_.norms[n];
      if (!used_[n] && violation > std::max(most, kTolerance * height)) {
        most = violation;
        worst = n;
      }
    }
    return worst;
  }

  // False if the row lies in the span of those in use to working precision.
  bool insert(Index row) {
    Vector column(rows_.z.rows() + 1);
    column << heights_[row], rows_.unit(row);
    if (!factors_.push(column)) return false;
    Vector next = factors_.weights();
    if (!(next[next.size() - 1] > 0)) return false;
    active_.push_back(row);
    used_[row] = 1;
    weights_.conservativeResize(next.size());
    weights_[next.size() - 1] = 0;
    while (next.size() > 0 && next.minCoeff() <= 0) {
      drop_one(next);
      next = factors_.weights();
    }
    weights_ = next;
    return true;
  }

  // Moves from weights_ towards `next` until a weight vanishes, and drops its row.
  void drop_one(const Vector& next) {
    Real step = 1;
    Index first = 0;
    for (Index i = 0; i < next.size(); ++i) {
      if (next[i] > 0) continue;
      const Real length = weights_[i] > 0 ? weights_[i] / (weights_[i] - next[i]) : 0;
      if (length > step) continue;
      step = length;
      first = i;
    }
    weights_ = (weights_ + step * (next - weights_)).cwiseMax(0);
    used_[active_[first]] = 0;
    active_.erase(active_.begin() + first);
    factors_.erase(first);
    const Index rest = next.size() - 1 - first;
    weights_.segment(first, rest) = weights_.tail(rest).eval();
    weights_.conservativeResize(next.size() - 1);
  }

  const Rows& rows_;
  Vector heights_;
  Factors factors_;
  std::vector<Index> active_;  // in the order of the columns
  std::vector<char> used_;
  Vector weights_;
  Vector residual_;
};

}  // namespace paperlab::regular_language::detail
