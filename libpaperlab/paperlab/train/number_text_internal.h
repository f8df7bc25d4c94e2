#pragma once
/// \file
/// Numbers in messages.

#include <cmath>
#include <sstream>
#include <string>

namespace paperlab::train {

/// As in 1e-08, inf and nan, which has no sign.
inline std::string number_text(double value) {
  if (std::isnan(value)) {
    return "nan";
  }
  std::ostringstream text;
  text << value;
  return text.str();
}

}  // namespace paperlab::train
