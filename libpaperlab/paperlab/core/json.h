#pragma once
/// \file
/// JSON values (nlohmann::json, keys sorted) and files that are never seen half-written.

#include <nlohmann/json.hpp>
#include <string>

#include "paperlab/core/export.h"

namespace paperlab {

using Json = nlohmann::json;

/// Parses `path`. \throws IoError if it cannot be read; ValueError "FILE: line N: ..." if malformed.
PAPERLAB_API Json read_json(const std::string& path);

/// Writes `value` to `path` through `path`.tmp, fsync and rename; the temporary file is removed on
/// error. \throws IoError naming the path and the system's reason.
PAPERLAB_API void write_json(const std::string& path, const Json& value);

}  // namespace paperlab
