#include "experiments/common/field_json.h"

#include <cmath>
#include <concepts>
#include <limits>
#include <utility>

#include "experiments/common/usage.h"

namespace paperlab::experiments {
namespace {

template <class T>
T to_integer(const Json& value, const std::string& where) {
  constexpr double kExact = 9007199254740992.0;  // 2^53: doubles below it are exact integers
  if (value.is_number_unsigned() && std::in_range<T>(value.get<std::uint64_t>())) {
    return static_cast<T>(value.get<std::uint64_t>());
  }
  if (value.is_number_integer() && !value.is_number_unsigned() &&
      std::in_range<T>(value.get<std::int64_t>())) {
    return static_cast<T>(value.get<std::int64_t>());
  }
  if (value.is_number_float()) {  // 1e6 is an integer too
    const double number = value.get<double>();
    if (number == std::trunc(number) && std::fabs(number) <= kExact &&
        std::in_range<T>(static_cast<std::int64_t>(number))) {
      return static_cast<T>(number);
    }
  }
  using Limits = std::numeric_limits<T>;
  reject(where,
         "an integer in " + std::to_string(Limits::min()) + ".." + std::to_string(Limits::max()),
         value);
}

bool is_utf8(const Json& value) {
  try {
    return !value.dump().empty();
  } catch (const Json::type_error&) {
    return false;
  }
}

void convert(const Json& value, const std::string& where, double& out) {
  check(value.is_number() && std::isfinite(value.get<double>()), where, "a finite number", value);
  out = value.get<double>();
}

void convert(const Json& value, const std::string& where, bool& out) {
  check(value.is_boolean(), where, "true or false", value);
  out = value.get<bool>();
}

void convert(const Json& value, const std::string& where, std::string& out) {
  check(value.is_string() && is_utf8(value), where, "a string of UTF-8", value);
  out = value.get<std::string>();
}

template <std::integral T>
void convert(const Json& value, const std::string& where, T& out) {
  out = to_integer<T>(value, where);
}

template <class T>
void convert(const Json& value, const std::string& where, std::vector<T>& out) {
  check(value.is_array(), where, "an array", value);
  std::vector<T> items;
  for (std::size_t i = 0; i < value.size(); ++i) {
    T item{};
    convert(value[i], where + "[" + std::to_string(i) + "]", item);
    items.push_back(std::move(item));
  }
  out = std::move(items);
}

Json value_of(const Field& field) {
  return std::visit([](const auto* target) { return Json(*target); }, field.target);
}

}  // namespace

void apply(const Field& field, const Json& value, const std::string& where, Mode mode) {
  std::visit(
      [&](auto* target) {
        auto converted = *target;
        convert(value, where, converted);
        if (mode == Mode::kAssign) {
          *target = std::move(converted);
        }
      },
      field.target);
}

Json values_of(const std::vector<Field>& fields) {
  Json values = Json::object();
  for (const Field& field : fields) {
    values[field.name] = value_of(field);
  }
  return values;
}

std::string describe_fields(const std::vector<Field>& fields, std::size_t width) {
  std::string text;
  std::string line;
  for (const Field& field : fields) {
    const std::string item = "  " + field.name + "=" + value_of(field).dump();
    if (!line.empty() && line.size() + item.size() > width) {
      text += line + "\n";
      line.clear();
    }
    line += item;
  }
  return text + line;
}

}  // namespace paperlab::experiments
