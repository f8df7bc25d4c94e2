#include "experiments/common/usage.h"

#include <algorithm>
#include <cctype>
#include <cstddef>
#include <utility>

namespace paperlab::experiments {
namespace {

std::size_t edit_distance(const std::string& a, const std::string& b) {
  std::vector<std::size_t> row(b.size() + 1);
  for (std::size_t j = 0; j < row.size(); ++j) {
    row[j] = j;
  }
  for (std::size_t i = 1; i <= a.size(); ++i) {
    std::size_t diagonal = std::exchange(row[0], i);
    for (std::size_t j = 1; j < row.size(); ++j) {
      const std::size_t replaced = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      diagonal = row[j];
      row[j] = std::min({replaced, row[j] + 1, row[j - 1] + 1});
    }
  }
  return row.back();
}

}  // namespace

void reject(const std::string& where, const std::string& required, const Json& got) {
  throw UsageError(where + " must be " + required + ", got " + brief(got));
}

void check(bool holds, const std::string& where, const std::string& required, const Json& got) {
  if (!holds) {
    reject(where, required, got);
  }
}

std::string brief(const Json& value) {
  constexpr std::size_t kLongest = 60;
  const std::string text = value.dump(-1, ' ', true, Json::error_handler_t::replace);
  return text.size() <= kLongest ? text : text.substr(0, kLongest - 3) + "...";
}

std::string suggestion(const std::string& word, const std::vector<std::string>& known) {
  constexpr std::size_t kLongest = 100;  // no key is that long
  std::string nearest;
  std::size_t least = std::max<std::size_t>(2, word.size() / 3) + 1;
  for (const std::string& candidate : word.size() > kLongest ? std::vector<std::string>{} : known) {
    const std::size_t distance = edit_distance(word, candidate);
    if (distance < least && distance < candidate.size()) {
      least = distance;
      nearest = candidate;
    }
  }
  return nearest.empty() ? "" : " (did you mean \"" + nearest + "\"?)";
}

std::string one_line(std::string message) {
  message = message.substr(0, message.find('\n'));
  std::replace_if(
      message.begin(), message.end(),
      [](char c) { return std::iscntrl(static_cast<unsigned char>(c)) != 0; }, '?');
  return message;
}

}  // namespace paperlab::experiments
