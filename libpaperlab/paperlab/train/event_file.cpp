#include "paperlab/train/event_file.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <system_error>

#include "paperlab/core/error.h"

namespace paperlab::train {
namespace {

namespace fs = std::filesystem;

constexpr char kPrefix[] = "events.out.tfevents.";

// Of each byte, for the polynomial 0x1EDC6F41 with its bits reversed.
constexpr std::array<std::uint32_t, 256> crc_table() {
  std::array<std::uint32_t, 256> table{};
  for (std::uint32_t byte = 0; byte < 256; ++byte) {
    std::uint32_t value = byte;
    for (int bit = 0; bit < 8; ++bit) {
      value = (value >> 1) ^ ((value & 1) != 0 ? 0x82F63B78U : 0U);
    }
    table[byte] = value;
  }
  return table;
}

// A file may hold checks of checks: they are rotated and moved.
std::uint32_t masked_crc(std::string_view bytes) {
  return std::rotr(crc32c(bytes), 15) + 0xA282EAD8U;
}

template <class T>
std::string little_endian(T value) {
  std::string bytes(sizeof(T), '\0');
  std::memcpy(bytes.data(), &value, sizeof(T));
  return bytes;
}

enum WireType : std::uint8_t { kVarint = 0, kFixed64 = 1, kBytes = 2, kFixed32 = 5 };

std::string varint(std::uint64_t value) {
  std::string bytes;
  for (; value >= 0x80; value >>= 7) {
    bytes += static_cast<char>((value & 0x7F) | 0x80);
  }
  return bytes + static_cast<char>(value);
}

std::string field(std::uint64_t number, WireType type, std::string_view payload) {
  return varint((number << 3) | type).append(payload);
}

std::string message(std::uint64_t number, std::string_view payload) {
  return field(number, kBytes, varint(payload.size()).append(payload));
}

// Fields of Event: 1 wall_time, 2 step, 3 file_version, 5 summary, 7 session_log.
std::string event(double wall_time, std::int64_t step, std::string_view rest) {
  return field(1, kFixed64, little_endian(wall_time))
      .append(field(2, kVarint, varint(static_cast<std::uint64_t>(step))))
      .append(rest);
}

double now() {
  const auto since = std::chrono::system_clock::now().time_since_epoch();
  return std::chrono::duration<double>(since).count();
}

std::string host_name() {
  std::array<char, 65> name{};
  return gethostname(name.data(), name.size() - 1) == 0 && name[0] != '\0' ? name.data() : "host";
}

// After those that are there, although two may be made within a second.
std::int64_t next_seconds(const std::vector<std::string>& files) {
  const auto seconds = static_cast<std::int64_t>(now());
  if (files.empty()) {
    return seconds;
  }
  const std::string name = fs::path(files.back()).filename();
  return std::max<std::int64_t>(seconds,
                                std::strtoll(name.c_str() + sizeof(kPrefix) - 1, nullptr, 10) + 1);
}

}  // namespace

std::uint32_t crc32c(std::string_view bytes) {
  static constexpr std::array<std::uint32_t, 256> kTable = crc_table();
  std::uint32_t value = ~0U;
  for (const char byte : bytes) {
    value = (value >> 8) ^ kTable[(value ^ static_cast<unsigned char>(byte)) & 0xFF];
  }
  return ~value;
}

std::string framed_record(std::string_view data) {
  const std::string length = little_endian(static_cast<std::uint64_t>(data.size()));
  return length + little_endian(masked_crc(length)) + std::string(data) +
         little_endian(masked_crc(data));
}

std::string scalar_event(double wall_time, std::int64_t step, const Scalars& scalars) {
  std::string values;
  for (const auto& [tag, value] : scalars) {  // Summary.Value: 1 tag, 2 simple_value
    values +=
        message(1, message(1, tag) + field(2, kFixed32, little_endian(static_cast<float>(value))));
  }
  return event(wall_time, step, message(5, values));
}

EventFile::EventFile(std::string directory, std::int64_t first_step)
    : directory_(std::move(directory)), first_step_(first_step), file_(nullptr, std::fclose) {}

std::vector<std::string> EventFile::files(const std::string& directory) {
  std::vector<std::string> paths;
  for (const fs::directory_entry& entry : fs::directory_iterator(directory)) {
    if (entry.path().filename().string().rfind(kPrefix, 0) == 0) {
      paths.push_back(entry.path());
    }
  }
  std::sort(paths.begin(), paths.end());
  return paths;
}

void EventFile::open() {
  const std::vector<std::string> earlier = files(directory_);
  path_ = directory_ + "/" + kPrefix + std::to_string(next_seconds(earlier)) + "." + host_name() +
          "." + std::to_string(getpid());
  file_.reset(std::fopen(path_.c_str(), "wbxe"));
  if (file_ == nullptr) {
    throw IoError(path_ + ": " + std::strerror(errno), errno);
  }
  std::string records = framed_record(event(now(), 0, message(3, "brain.Event:2")));
  if (!earlier.empty()) {  // SessionLog.status = START
    records += framed_record(event(now(), first_step_, message(7, field(1, kVarint, varint(1)))));
  }
  std::fwrite(records.data(), 1, records.size(), file_.get());
}

void EventFile::append(std::int64_t step, const Scalars& scalars) {
  if (file_ == nullptr) {
    open();
  }
  const std::string record = framed_record(scalar_event(now(), step, scalars));
  const bool is_written =
      std::fwrite(record.data(), 1, record.size(), file_.get()) == record.size();
  if (!is_written || std::fflush(file_.get()) != 0) {
    throw IoError(path_ + ": " + std::strerror(errno), errno);
  }
}

}  // namespace paperlab::train
