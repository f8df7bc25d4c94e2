#include "paperlab/core/json.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "paperlab/core/error.h"

namespace paperlab {
namespace {

constexpr int kMaxDepth = 64;  // deeper values would need deep recursion to print

[[noreturn]] void throw_io_error(const std::string& path, int error) {
  throw IoError(path + ": " + std::strerror(error), error);
}

/// A file descriptor that closes itself.
class File {
 public:
  File(const std::string& path, int flags)
      : path_(path), descriptor_(open(path.c_str(), flags | O_CLOEXEC, 0666)) {
    if (descriptor_ < 0) {
      throw_io_error(path_, errno);
    }
  }
  ~File() {
    if (descriptor_ >= 0) {
      ::close(descriptor_);
    }
  }
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  std::string read_all() const {
    std::string text;
    std::array<char, 65536> buffer{};
    for (;;) {
      const ssize_t count = read(descriptor_, buffer.data(), buffer.size());
      if (count == 0) {
        return text;
      }
      if (count > 0) {
        text.append(buffer.data(), static_cast<std::size_t>(count));
      } else if (errno != EINTR) {
        throw_io_error(path_, errno);
      }
    }
  }

  void write_all(std::string_view text) const {
    while (!text.empty()) {
      const ssize_t count = write(descriptor_, text.data(), text.size());
      if (count >= 0) {
        text.remove_prefix(static_cast<std::size_t>(count));
      } else if (errno != EINTR) {
        throw_io_error(path_, errno);
      }
    }
  }

  void sync_and_close() {
    const bool synced = fsync(descriptor_) == 0;
    const int sync_error = errno;
    const bool closed = ::close(descriptor_) == 0;
    const int close_error = errno;
    descriptor_ = -1;
    if (!synced || !closed) {
      throw_io_error(path_, synced ? close_error : sync_error);
    }
  }

 private:
  std::string path_;
  int descriptor_;
};

/// `path`: line of byte `position`: `what`.
ValueError malformed(const std::string& path, const std::string& text, std::size_t position,
                     const std::string& what) {
  const auto end = text.begin() + static_cast<std::ptrdiff_t>(std::min(position, text.size()));
  const auto line = 1 + std::count(text.begin(), end, '\n');
  return ValueError(path + ": line " + std::to_string(line) + ": " + what);
}

/// nlohmann's message without its own prefix and position.
std::string reason(const std::string& message) {
  const std::size_t column = message.find(", column ");
  const std::string mark = column == std::string::npos ? "] " : ": ";
  const std::size_t at = message.find(mark, column == std::string::npos ? 0 : column);
  return at == std::string::npos ? message : message.substr(at + mark.size());
}

/// Where the literal that nlohmann quotes at the end of an overflow message stands in `text`.
std::size_t position_of_quoted(const std::string& message, const std::string& text) {
  const std::size_t open = message.find('\'');
  const std::size_t close = message.rfind('\'');
  return open < close ? text.find(message.substr(open + 1, close - open - 1)) : 0;
}

bool is_one_line(const Json& value) {
  const auto is_plain = [](const Json& item) { return !item.is_structured(); };
  return is_plain(value) || value.empty() ||
         (value.is_array() && std::all_of(value.begin(), value.end(), is_plain));
}

void append_one_line(const Json& value, std::string& out) {
  if (!value.is_array()) {
    out += value.dump();
    return;
  }
  out += '[';
  for (std::size_t i = 0; i < value.size(); ++i) {
    out += i == 0 ? "" : ", ";
    out += value[i].dump();
  }
  out += ']';
}

void append(const Json& value, std::size_t indent, std::string& out) {
  if (is_one_line(value)) {
    append_one_line(value, out);
    return;
  }
  out += value.is_object() ? '{' : '[';
  const char* separator = "\n";
  for (const auto& item : value.items()) {
    out += separator + std::string(indent + 1, ' ');
    if (value.is_object()) {
      out += Json(item.key()).dump() + ": ";
    }
    append(item.value(), indent + 1, out);
    separator = ",\n";
  }
  out += '\n' + std::string(indent, ' ') + (value.is_object() ? '}' : ']');
}

}  // namespace

Json read_json(const std::string& path) {
  const std::string text = File(path, O_RDONLY).read_all();
  const std::size_t zero = text.find('\0');  // the parser would take it for the end
  if (zero != std::string::npos) {
    throw malformed(path, text, zero, "a zero byte");
  }
  std::vector<std::set<std::string>> keys;  // of the objects that are open
  const auto check = [&](int depth, Json::parse_event_t event, const Json& value) {
    if (depth > kMaxDepth) {
      throw ValueError(path + ": nested more than " + std::to_string(kMaxDepth) + " deep");
    }
    if (event == Json::parse_event_t::object_start) {
      keys.emplace_back();
    } else if (event == Json::parse_event_t::object_end) {
      keys.pop_back();
    } else if (event == Json::parse_event_t::key && !keys.back().insert(value).second) {
      throw ValueError(path + ": key " + value.dump() + " stands twice in an object");
    }
    return true;
  };
  try {
    return Json::parse(text, check);
  } catch (const Json::parse_error& error) {
    throw malformed(path, text, error.byte == 0 ? 0 : error.byte - 1, reason(error.what()));
  } catch (const Json::out_of_range& error) {
    const std::string message = error.what();
    throw malformed(path, text, position_of_quoted(message, text), reason(message));
  }
}

void write_json(const std::string& path, const Json& value) {
  const std::string text = format_json(value);
  const std::string temporary = path + ".tmp";
  try {
    File file(temporary, O_WRONLY | O_CREAT | O_TRUNC);
    file.write_all(text);
    file.sync_and_close();
  } catch (const IoError&) {
    unlink(temporary.c_str());
    throw;
  }
  if (std::rename(temporary.c_str(), path.c_str()) != 0) {
    const int error = errno;
    unlink(temporary.c_str());
    throw_io_error(path, error);
  }
}

std::string format_json(const Json& value) {
  std::string out;
  append(value, 0, out);
  return out + '\n';
}

Json json_number(double value) {
  constexpr double kExact = 9007199254740992.0;  // 2^53
  if (!std::isfinite(value)) {
    return nullptr;
  }
  const bool is_negative_zero = value == 0.0 && std::signbit(value);
  if (value == std::trunc(value) && std::fabs(value) < kExact && !is_negative_zero) {
    return static_cast<std::int64_t>(value);
  }
  return value;
}

}  // namespace paperlab
