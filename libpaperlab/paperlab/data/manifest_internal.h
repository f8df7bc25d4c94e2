#pragma once
// Members of manifests. All throw ValueError without the file's name, which the caller adds.

#include <cstdint>
#include <string>

#include "paperlab/core/json.h"

namespace paperlab::data::manifest {

/// A member of an object that must be there.
const Json& member(const Json& object, const char* key);

/// An integer in low..high.
std::int64_t integer(const Json& object, const char* key, std::int64_t low, std::int64_t high);

/// A string.
std::string text(const Json& object, const char* key);

/// `name` if it can be a part of a path: one folder or file, no other.
std::string path_part(const std::string& name);

}  // namespace paperlab::data::manifest
