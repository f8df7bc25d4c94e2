#include "paperlab/data/manifest_internal.h"

#include <algorithm>

#include "paperlab/core/error.h"

namespace paperlab::data::manifest {

const Json& member(const Json& object, const char* key) {
  if (!object.is_object() || !object.contains(key)) {
    throw ValueError(std::string("'") + key + "' is missing");
  }
  return object.at(key);
}

std::int64_t integer(const Json& object, const char* key, std::int64_t low, std::int64_t high) {
  const Json& value = member(object, key);
  const bool is_there = value.is_number_integer() &&
                        (!value.is_number_unsigned() ||
                         value.get<std::uint64_t>() <= static_cast<std::uint64_t>(high)) &&
                        value.get<std::int64_t>() >= low && value.get<std::int64_t>() <= high;
  if (!is_there) {
    throw ValueError(std::string("'") + key + "' must be in " + std::to_string(low) + ".." +
                     std::to_string(high) + ", got " + value.dump().substr(0, 60));
  }
  return value.get<std::int64_t>();
}

std::string text(const Json& object, const char* key) {
  const Json& value = member(object, key);
  if (!value.is_string()) {
    throw ValueError(std::string("'") + key + "' must be a string");
  }
  return value.get<std::string>();
}

std::string path_part(const std::string& name) {
  const bool is_plain = !name.empty() && name.size() <= 100 && name.front() != '.' &&
                        std::all_of(name.begin(), name.end(), [](char c) {
                          return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
                                 (c >= '0' && c <= '9') || c == '-' || c == '_' || c == '.';
                        });
  if (!is_plain) {
    throw ValueError("names must be letters, digits, '-', '_' and '.', got " +
                     Json(name.substr(0, 60)).dump(-1, ' ', true, Json::error_handler_t::replace));
  }
  return name;
}

}  // namespace paperlab::data::manifest
