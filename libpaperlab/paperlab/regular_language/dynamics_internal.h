#pragma once
// One interface over the ways to compute the loss gradient: the trainer sees two flat arrays.

#include <cstdint>
#include <memory>
#include <vector>

#include "paperlab/core/parallel.h"
#include "paperlab/regular_language/train.h"

namespace paperlab::regular_language {

// u and w, or their gradient, in the method's own layout.
struct Parameters {
  std::vector<double> u;
  std::vector<double> w;
};

struct Evaluation {
  double loss = 0.0;
  double accuracy = 0.0;
  double min_margin = 0.0;
};

struct StepSizes {
  double u = 0.0;
  double w = 0.0;
};

class Dynamics {
 public:
  virtual ~Dynamics() = default;

  virtual Parameters initial() const = 0;
  virtual void gradient(const Parameters& at, Parameters& out) = 0;
  virtual Evaluation evaluate(const Parameters& at) = 0;

  // `count` updates of plain gradient descent at once, in place. Returns the number (from 1) of the
  // first update after which u is not finite, or -1. For dynamics of Device::kCuda alone.
  virtual std::int64_t descend(Parameters& at, StepSizes sizes, std::int64_t count);

  // How many entries of the full u and w each entry stands for; empty: one each.
  virtual std::vector<double> u_multiplicity() const { return {}; }
  virtual std::vector<double> w_multiplicity() const { return {}; }

  // [2 max_length] and row-major [key, query].
  virtual std::vector<double> full_u(const Parameters& at) const = 0;
  virtual std::vector<double> full_w(const Parameters& at) const = 0;
};

std::unique_ptr<Dynamics> make_two_class(const TrainOptions& options);
std::unique_ptr<Dynamics> make_exhaustive(const TrainOptions& options,
                                          std::shared_ptr<const Executor> executor);
// Defined in builds with CUDA alone.
std::unique_ptr<Dynamics> make_exhaustive_cuda(const TrainOptions& options);

// sqrt(sum multiplicity x^2).
double norm(const std::vector<double>& x, const std::vector<double>& multiplicity);

}  // namespace paperlab::regular_language
