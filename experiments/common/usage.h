#pragma once
/// \file
/// What a user wrote is wrong: the error type, its wording and the "did you mean".

#include <string>
#include <vector>

#include "paperlab/core/error.h"
#include "paperlab/core/json.h"

namespace paperlab::experiments {

/// The command line, the environment or a configuration is wrong: one line, exit 2, before any
/// work.
class UsageError : public Error {
 public:
  using Error::Error;
};

/// Throws UsageError "<where> must be <required>, got <got>".
[[noreturn]] void reject(const std::string& where, const std::string& required, const Json& got);

/// Rejects `got` unless `holds`.
void check(bool holds, const std::string& where, const std::string& required, const Json& got);

/// `value` as ASCII JSON, cut to what fits into a message.
std::string brief(const Json& value);

/// ' (did you mean "x"?)' for the known word nearest to `word`, or "" if none is near.
std::string suggestion(const std::string& word, const std::vector<std::string>& known);

/// The first line of `message` without control characters.
std::string one_line(std::string message);

}  // namespace paperlab::experiments
