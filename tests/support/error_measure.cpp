#include "tests/support/error_measure.h"

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <iomanip>
#include <limits>

namespace paperlab::test {
namespace {

constexpr long double kUnderflow = 1e-300L;

// Error in units of what is allowed; more than 1 is too much.
double excess(double actual, long double exact, long double norm, double bound) {
  const long double error = std::fabs(actual - exact);
  if (std::isnan(error)) {
    return std::numeric_limits<double>::infinity();
  }
  const long double allowed = norm * bound + (norm > 0.0L ? kUnderflow : 0.0L);
  if (error <= allowed) {
    return 0.0;
  }
  return allowed > 0.0L ? static_cast<double>(error / allowed)
                        : std::numeric_limits<double>::infinity();
}

}  // namespace

testing::AssertionResult is_close(std::span<const double> actual,
                                  std::span<const long double> exact,
                                  std::span<const long double> norm, double bound) {
  if (actual.size() != exact.size() || actual.size() != norm.size()) {
    return testing::AssertionFailure()
           << "sizes differ: " << actual.size() << ", " << exact.size() << ", " << norm.size();
  }
  std::size_t worst = 0;
  double most = 0.0;
  for (std::size_t i = 0; i < actual.size(); ++i) {
    const double here = excess(actual[i], exact[i], norm[i], bound);
    if (here > most) {
      most = here;
      worst = i;
    }
  }
  if (most == 0.0) {
    return testing::AssertionSuccess();
  }
  return testing::AssertionFailure()
         << "entry " << worst << " of " << actual.size() << ": got " << std::setprecision(17)
         << actual[worst] << ", exact " << exact[worst] << ", error "
         << std::fabs(actual[worst] - exact[worst]) << ", allowed " << norm[worst] * bound;
}

testing::AssertionResult is_close(double actual, long double exact, long double norm,
                                  double bound) {
  return is_close(std::span(&actual, 1), std::span(&exact, 1), std::span(&norm, 1), bound);
}

testing::AssertionResult has_same_bits(std::span<const double> a, std::span<const double> b) {
  if (a.size() != b.size()) {
    return testing::AssertionFailure() << "sizes differ: " << a.size() << " and " << b.size();
  }
  for (std::size_t i = 0; i < a.size(); ++i) {
    if (std::bit_cast<std::uint64_t>(a[i]) != std::bit_cast<std::uint64_t>(b[i])) {
      return testing::AssertionFailure() << "entry " << i << " of " << a.size() << ": "
                                         << std::hexfloat << a[i] << " and " << b[i];
    }
  }
  return testing::AssertionSuccess();
}

}  // namespace paperlab::test
