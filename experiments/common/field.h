#pragma once
/// \file
/// The settings of a driver: a Config struct lists them once in `fields(visit)`, and that list
/// serves parsing, --set, suggestions and help.

#include <cstdint>
#include <string>
#include <variant>
#include <vector>

namespace paperlab::experiments {

/// One setting: its key in config.json and where its value lives.
struct Field {
  using Target =
      std::variant<double*, int*, std::int64_t*, std::uint64_t*, bool*, std::string*,
                   std::vector<double>*, std::vector<int>*, std::vector<std::int64_t>*,
                   std::vector<std::uint64_t>*, std::vector<bool>*, std::vector<std::string>*>;

  std::string name;
  Target target;
};

/// The fields of `config`, which must outlive them.
template <class Config>
std::vector<Field> fields_of(Config& config) {
  std::vector<Field> fields;
  config.fields([&fields](const char* name, auto& value) { fields.push_back({name, &value}); });
  return fields;
}

}  // namespace paperlab::experiments
