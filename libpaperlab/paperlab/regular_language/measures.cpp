#include "paperlab/regular_language/measures.h"

#include <cmath>
#include <limits>
#include <numeric>
#include <string>

#include "paperlab/core/error.h"

namespace paperlab::regular_language {
namespace {

void require_lengths(const char* function, std::size_t a, std::size_t b, std::size_t least) {
  require<ShapeError>(a == b && a >= least, function,
                      "both arguments must have one length, at least " + std::to_string(least),
                      std::to_string(a) + " and " + std::to_string(b));
}

double dot(const std::vector<double>& a, const std::vector<double>& b) {
  return std::inner_product(a.begin(), a.end(), b.begin(), 0.0);
}

}  // namespace

Line fit_line(const std::vector<double>& x, const std::vector<double>& y) {
  require_lengths("fit_line", x.size(), y.size(), 2);
  const auto n = static_cast<double>(x.size());
  const double x_mean = std::accumulate(x.begin(), x.end(), 0.0) / n;
  const double y_mean = std::accumulate(y.begin(), y.end(), 0.0) / n;
  double xx = 0.0;
  double xy = 0.0;
  double yy = 0.0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    xx += (x[i] - x_mean) * (x[i] - x_mean);
    xy += (x[i] - x_mean) * (y[i] - y_mean);
    yy += (y[i] - y_mean) * (y[i] - y_mean);
  }
  const double slope = xy / xx;
  return {slope, y_mean - slope * x_mean, yy == 0.0 ? 1.0 : xy * xy / (xx * yy)};
}

std::int64_t log_growth_onset(const std::vector<std::int64_t>& step,
                              const std::vector<double>& norm) {
  require_lengths("log_growth_onset", step.size(), norm.size(), 4);
  std::int64_t onset = 0;
  double steepest = -std::numeric_limits<double>::infinity();
  for (std::size_t i = 1; i + 1 < step.size(); ++i) {
    if (step[i - 1] < 1) {
      continue;
    }
    const double growth =
        (norm[i + 1] - norm[i - 1]) /
        (std::log(static_cast<double>(step[i + 1])) - std::log(static_cast<double>(step[i - 1])));
    if (growth > steepest) {
      steepest = growth;
      onset = step[i];
    }
  }
  return onset;
}

std::int64_t perfect_from(const std::vector<std::int64_t>& step,
                          const std::vector<double>& accuracy) {
  require_lengths("perfect_from", step.size(), accuracy.size(), 1);
  std::int64_t from = -1;
  for (std::size_t i = step.size(); i > 0 && accuracy[i - 1] == 1.0; --i) {
    from = step[i - 1];
  }
  return from;
}

double cosine(const std::vector<double>& a, const std::vector<double>& b) {
  require_lengths("cosine", a.size(), b.size(), 1);
  return dot(a, b) / std::sqrt(dot(a, a) * dot(b, b));
}

}  // namespace paperlab::regular_language
