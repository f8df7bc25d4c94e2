#pragma once
// A value by its name, as Python gives it.

#include <map>
#include <string>

#include "paperlab/core/error.h"

namespace paperlab::bindings {

/// The value of that name.
/// \throws ValueError  "FUNCTION: ARGUMENT must be one of A, B, got 'NAME'".
template <class T>
T choice(const std::map<std::string, T>& values, const char* function, const char* argument,
         const std::string& name) {
  const auto found = values.find(name);
  if (found != values.end()) {
    return found->second;
  }
  std::string names;
  for (const auto& [known, value] : values) {
    names += (names.empty() ? "" : ", ") + known;
  }
  throw ValueError(std::string(function) + ": " + argument + " must be one of " + names +
                   ", got '" + name + "'");
}

}  // namespace paperlab::bindings
