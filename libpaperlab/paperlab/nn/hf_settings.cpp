#include <cmath>
#include <iterator>
#include <sstream>
#include <utility>

#include "paperlab/core/error.h"
#include "paperlab/io/safetensors.h"
#include "paperlab/nn/hf_settings.h"

namespace paperlab::nn {
namespace {

constexpr std::size_t kMaxShown = 80;  // characters of a value in a message

std::string shown(const Json& value) {
  std::string text = value.dump(-1, ' ', true, Json::error_handler_t::replace);
  return text.size() <= kMaxShown ? text : text.substr(0, kMaxShown) + "...";
}

std::string list(const std::set<std::string>& keys) {
  std::string text;
  for (const std::string& key : keys) {
    text += (text.empty() ? "" : ", ") + key;
  }
  return text;
}

bool is_size(const Json& value, std::int64_t max) {
  const std::int64_t size = integer(value).value_or(0);
  return size >= 1 && size <= max;
}

std::string bound(double min) {
  if (!std::isfinite(min)) {
    return "";
  }
  return min > 0.0 && min <= kPositive ? " > 0" : " >= " + shown(json_number(min));
}

bool is_finite_number(const Json& value) {
  return value.is_number() && std::isfinite(value.get<double>());
}

}  // namespace

std::optional<std::int64_t> integer(const Json& value) {
  constexpr std::uint64_t kMax = std::numeric_limits<std::int64_t>::max();
  const bool is_integer = value.is_number_integer() &&
                          (!value.is_number_unsigned() || value.get<std::uint64_t>() <= kMax);
  return is_integer ? std::optional(value.get<std::int64_t>()) : std::nullopt;
}

Settings::Settings(std::string source, const Json& object, std::string prefix)
    : source_(std::move(source)), object_(object), prefix_(std::move(prefix)) {
  if (!object_.is_object()) {
    throw ValueError(source_ + ": " + (prefix_.empty() ? "" : "setting '" + prefix_ + "' ") +
                     "must be an object, got " + shown(object_));
  }
  prefix_ += prefix_.empty() ? "" : ".";
}

const Json* Settings::find(const std::string& key) {
  read_.insert(key);
  const auto found = object_.find(key);
  return found == object_.end() ? nullptr : &*found;
}

const Json* Settings::find_value(const std::string& key) {
  const Json* value = find(key);
  return value != nullptr && value->is_null() ? nullptr : value;
}

std::int64_t Settings::size(const std::string& key, std::int64_t absent, std::int64_t max) {
  const Json* value = find(key);
  if (value == nullptr) {
    return absent;
  }
  if (!is_size(*value, max)) {
    refuse(key, "an integer from 1 to " + std::to_string(max));
  }
  return value->get<std::int64_t>();
}

std::optional<std::int64_t> Settings::optional_size(const std::string& key) {
  return find_value(key) == nullptr ? std::nullopt : std::optional(size(key, 0));
}

double Settings::number(const std::string& key, double absent, double min) {
  const Json* value = find(key);
  if (value == nullptr) {
    return absent;
  }
  if (!is_finite_number(*value) || value->get<double>() < min) {
    refuse(key, "a finite number" + bound(min));
  }
  return value->get<double>();
}

std::optional<double> Settings::optional_number(const std::string& key, double min) {
  return find_value(key) == nullptr ? std::nullopt : std::optional(number(key, 0.0, min));
}

bool Settings::flag(const std::string& key, bool absent) {
  const Json* value = find(key);
  if (value != nullptr && !value->is_boolean()) {
    refuse(key, "true or false");
  }
  return value == nullptr ? absent : value->get<bool>();
}

std::string Settings::text(const std::string& key, const std::string& absent) {
  const Json* value = find(key);
  if (value != nullptr && !value->is_string()) {
    refuse(key, "a string");
  }
  return value == nullptr ? absent : value->get<std::string>();
}

void Settings::only(const std::string& key, const Json& value) {
  const Json* found = find_value(key);
  if (found != nullptr && *found != value) {
    refuse(key, shown(value) + " or null");
  }
}

void Settings::allow(const std::string& keys) {
  std::istringstream words(keys);
  allowed_.insert(std::istream_iterator<std::string>(words), {});
}

void Settings::refuse_others(const std::string& what) const {
  const std::string counting = what + "; those that count are " + list(read_);
  for (const auto& [key, value] : object_.items()) {
    if (!value.is_null() && read_.count(key) == 0 && allowed_.count(key) == 0) {
      std::string message = source_ + ": setting " + io::quoted_name(prefix_ + key) + " (";
      message += shown(value) + ") is not known for ";
      throw ValueError(message += counting);
    }
  }
}

void Settings::refuse(const std::string& key, const std::string& required) const {
  const auto found = object_.find(key);
  throw ValueError(source_ + ": setting '" + prefix_ + key + "' must be " + required + ", got " +
                   (found == object_.end() ? "nothing" : shown(*found)));
}

}  // namespace paperlab::nn
