#pragma once
/// \file
/// JSON values (nlohmann::json, keys sorted) and files that are never seen half-written.

#include <nlohmann/json.hpp>
#include <string>

#include "paperlab/core/export.h"

namespace paperlab {

using Json = nlohmann::json;

/// Returns the value in the file `path`.
/// \throws IoError     "FILE: reason" if it cannot be read.
/// \throws ValueError  "FILE: line N: what is wrong" if it is malformed; another if it is nested
///                     more than 64 deep or an object has a key twice.
PAPERLAB_API Json read_json(const std::string& path);

/// Writes `value` to `path` through `path`.tmp, fsync and rename; the temporary file is removed on
/// error, and what was in `path` stays.
/// \throws IoError  "FILE: reason" if the system refuses, a full disk included.
PAPERLAB_API void write_json(const std::string& path, const Json& value);

/// `value` as text: objects over several lines, arrays of plain values on one line, newline at the
/// end. Equal values give equal text, and numbers are read back with the same bits.
PAPERLAB_API std::string format_json(const Json& value);

/// `value` as a JSON number, without a fraction where it is a whole number below 2^53; null if it
/// is not finite.
PAPERLAB_API Json json_number(double value);

}  // namespace paperlab
