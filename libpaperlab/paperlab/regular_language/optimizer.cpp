#include <cmath>

#include "paperlab/regular_language/optimizer_internal.h"

namespace paperlab::regular_language {
namespace {

constexpr double kMomentum = 0.9;
constexpr double kBeta1 = 0.9;
constexpr double kBeta2 = 0.999;
constexpr double kEpsilon = 1e-8;

std::vector<double> zeros(const std::vector<double>& like) {
  return std::vector<double>(like.size(), 0.0);
}

void heavy_ball(const std::vector<double>& g, double step, std::vector<double>& m,
                std::vector<double>& x) {
  for (std::size_t i = 0; i < x.size(); ++i) {
    m[i] = kMomentum * m[i] + g[i];
    x[i] -= step * m[i];
  }
}

void adam(const std::vector<double>& g, double step, std::int64_t t, std::vector<double>& m,
          std::vector<double>& v, std::vector<double>& x) {
  const double first = 1.0 - std::pow(kBeta1, static_cast<double>(t));
  const double second = 1.0 - std::pow(kBeta2, static_cast<double>(t));
  for (std::size_t i = 0; i < x.size(); ++i) {
    m[i] = kBeta1 * m[i] + (1.0 - kBeta1) * g[i];
    v[i] = kBeta2 * v[i] + (1.0 - kBeta2) * g[i] * g[i];
    x[i] -= step * (m[i] / first) / (std::sqrt(v[i] / second) + kEpsilon);
  }
}

void descend(const std::vector<double>& g, double step, std::vector<double>& x) {
  for (std::size_t i = 0; i < x.size(); ++i) {
    x[i] -= step * g[i];
  }
}

void sign_descend(const std::vector<double>& g, double step, std::vector<double>& x) {
  for (std::size_t i = 0; i < x.size(); ++i) {
    x[i] -= step * static_cast<double>((g[i] > 0.0) - (g[i] < 0.0));
  }
}

}  // namespace

OptimizerState::OptimizerState(Optimizer kind, const Parameters& like) : kind_(kind) {
  if (kind == Optimizer::kHeavyBall || kind == Optimizer::kAdam) {
    first_ = {zeros(like.u), zeros(like.w)};
  }
  if (kind == Optimizer::kAdam) {
    second_ = {zeros(like.u), zeros(like.w)};
  }
}

void OptimizerState::update(const Parameters& gradient, double gradient_norm, double u_step,
                            double w_step, Parameters& at) {
  ++num_updates_;
  switch (kind_) {
    case Optimizer::kGd:
      descend(gradient.u, u_step, at.u);
      descend(gradient.w, w_step, at.w);
      return;
    case Optimizer::kHeavyBall:
      heavy_ball(gradient.u, u_step, first_.u, at.u);
      heavy_ball(gradient.w, w_step, first_.w, at.w);
      return;
    case Optimizer::kNormalizedGd:
      require<ValueError>(gradient_norm > 0.0, "train",
                          "optimizer normalized_gd needs a gradient that is not 0",
                          "0 at update " + std::to_string(num_updates_));
      descend(gradient.u, u_step / gradient_norm, at.u);
      descend(gradient.w, w_step / gradient_norm, at.w);
      return;
    case Optimizer::kAdam:
      adam(gradient.u, u_step, num_updates_, first_.u, second_.u, at.u);
      adam(gradient.w, w_step, num_updates_, first_.w, second_.w, at.w);
      return;
    case Optimizer::kSignGd:
      sign_descend(gradient.u, u_step, at.u);
      sign_descend(gradient.w, w_step, at.w);
      return;
  }
}

}  // namespace paperlab::regular_language
