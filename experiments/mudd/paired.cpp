#include "experiments/mudd/paired.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace paperlab::experiments::mudd {

Gap gap_of(const std::vector<double>& differences) {
  Gap gap;
  gap.least = std::numeric_limits<double>::infinity();
  const auto count = static_cast<double>(differences.size());
  for (const double difference : differences) {
    gap.mean += difference / count;
    gap.least = std::min(gap.least, difference);
    gap.num_positive += difference < 0.0 ? 0.0 : 1.0;  // NaN counts
  }
  double squares = 0.0;
  for (const double difference : differences) {
    squares += std::pow(difference - gap.mean, 2);
  }
  gap.standard_error = std::sqrt(squares / (count * (count - 1.0)));
  return gap;
}

bool counts_below(const Gap& gap) {
  return gap.mean + 2.0 * gap.standard_error < 0.0 && gap.num_positive == 0.0;
}

double counted_below(const Gap& gap) {
  return counts_below(gap) ? gap.mean : std::max(gap.mean, 0.0);
}

double counted_above(const Gap& gap) {
  const double low = gap.mean - 2.0 * gap.standard_error;  // NaN if a seed is, and stays so
  return low > 0.0 && gap.least > 0.0 ? gap.mean : std::min(low, gap.least);
}

}  // namespace paperlab::experiments::mudd
