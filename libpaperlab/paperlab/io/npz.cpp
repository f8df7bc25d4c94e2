// Zip archives as numpy.savez writes them: local header, name, member; at the end a directory of
// all members, and a record that says where the directory is. Numbers are little endian.
#include <algorithm>
#include <array>

#include "paperlab/core/error.h"
#include "paperlab/io/npy_internal.h"
#include "paperlab/io/safetensors.h"

namespace paperlab::io {
namespace {

using Bytes = std::span<const std::byte>;

constexpr std::uint32_t kLocalMark = 0x04034b50;
constexpr std::uint32_t kDirectoryMark = 0x02014b50;
constexpr std::uint32_t kEndMark = 0x06054b50;
constexpr std::uint32_t kEnd64Mark = 0x06064b50;
constexpr std::uint32_t kEnd64LocatorMark = 0x07064b50;
constexpr std::size_t kLocalBytes = 30;
constexpr std::size_t kDirectoryBytes = 46;
constexpr std::size_t kEndBytes = 22;
constexpr std::size_t kEnd64Bytes = 56;
constexpr std::size_t kEnd64LocatorBytes = 20;
constexpr std::uint64_t kLarge = 0xFFFFFFFF;  // the number stands in the zip64 field
constexpr std::size_t kAlignment = 64;
constexpr std::string_view kSuffix = ".npy";

// The checksum of zip: reflected polynomial 0xEDB88320.
constexpr std::array<std::uint32_t, 256> kCrcTable = [] {
  std::array<std::uint32_t, 256> table{};
  for (std::uint32_t i = 0; i < 256; ++i) {
    table[i] = i;
    for (int bit = 0; bit < 8; ++bit) {
      table[i] = (table[i] >> 1) ^ ((table[i] & 1) != 0 ? 0xEDB88320 : 0);
    }
  }
  return table;
}();

std::uint32_t crc32(Bytes bytes, std::uint32_t crc = 0) {
  crc = ~crc;
  for (const std::byte byte : bytes) {
    crc = (crc >> 8) ^ kCrcTable[(crc ^ static_cast<std::uint32_t>(byte)) & 0xFF];
  }
  return ~crc;
}

Bytes bytes_of(std::string_view text) { return std::as_bytes(std::span(text)); }

/// A member as the directory describes it.
struct Member {
  std::string name;
  std::uint64_t flags = 0;
  std::uint64_t method = 0;
  std::uint64_t crc = 0;
  std::uint64_t stored_bytes = 0;
  std::uint64_t num_bytes = 0;
  std::uint64_t offset = 0;  // of the local header
};

class ZipReader {
 public:
  ZipReader(const std::string& source, Bytes file) : source_(source), file_(file) {}

  std::map<std::string, NpyArray> arrays() {
    std::uint64_t count = 0;
    std::uint64_t at = 0;
    find_directory(count, at);
    std::uint64_t total = 0;
    std::map<std::string, NpyArray> found;
    for (std::uint64_t i = 0; i < count; ++i) {
      const Member member = read_member(at);
      std::string name = member.name;
      if (name.ends_with(kSuffix)) {
        name.resize(name.size() - kSuffix.size());
      }
      const Bytes data = member_data(member);
      total += data.size();
      if (total > file_.size()) {  // the same bytes named again and again would fill the memory
        fail("members overlap");
      }
      if (!found.emplace(name, parse_npy(source_ + ": " + quoted_name(name), data)).second) {
        fail(quoted_name(name) + " is there twice");
      }
    }
    return found;
  }

 private:
  [[noreturn]] void fail(const std::string& what) const { throw ValueError(source_ + ": " + what); }

  // The number at `offset` of a record that starts at `at`; both come from the file.
  std::uint64_t number(std::uint64_t at, std::size_t offset, std::size_t num_bytes) const {
    range(at, offset + num_bytes);
    return little_endian(file_, at + offset, num_bytes);
  }

  Bytes range(std::uint64_t at, std::uint64_t num_bytes) const {
    if (at > file_.size() || num_bytes > file_.size() - at) {
      fail("is truncated, or no .npz file");
    }
    return file_.subspan(at, num_bytes);
  }

  // Sets the number of members and the directory's place. A comment may follow the end record.
  void find_directory(std::uint64_t& count, std::uint64_t& at) const {
    constexpr std::size_t kMaxComment = 65535;
    for (std::size_t back = kEndBytes; back <= std::min(file_.size(), kEndBytes + kMaxComment);
         ++back) {
      const std::size_t end = file_.size() - back;
      if (number(end, 0, 4) != kEndMark || number(end, 20, 2) != back - kEndBytes) {
        continue;
      }
      count = number(end, 10, 2);
      at = number(end, 16, 4);
      if (end >= kEnd64LocatorBytes &&
          number(end - kEnd64LocatorBytes, 0, 4) == kEnd64LocatorMark) {
        const std::uint64_t end64 = number(end - kEnd64LocatorBytes, 8, 8);
        range(end64, kEnd64Bytes);
        if (number(end64, 0, 4) != kEnd64Mark) {
          fail("the zip64 record is missing");
        }
        count = number(end64, 32, 8);
        at = number(end64, 48, 8);
      }
      return;
    }
    fail("is truncated, or no .npz file");
  }

  // The member whose directory entry is at `at`, which moves behind it.
  Member read_member(std::uint64_t& at) const {
    if (number(at, 0, 4) != kDirectoryMark) {
      fail("the directory of the archive is malformed");
    }
    const std::uint64_t name_bytes = number(at, 28, 2);
    const std::uint64_t extra_bytes = number(at, 30, 2);
    const std::uint64_t comment_bytes = number(at, 32, 2);
    const Bytes all = range(at, kDirectoryBytes + name_bytes + extra_bytes + comment_bytes);
    const Bytes name = all.subspan(kDirectoryBytes, name_bytes);
    Member member{std::string(reinterpret_cast<const char*>(name.data()), name.size()),
                  number(at, 8, 2),
                  number(at, 10, 2),
                  number(at, 16, 4),
                  number(at, 20, 4),
                  number(at, 24, 4),
                  number(at, 42, 4)};
    read_zip64(all.subspan(kDirectoryBytes + name_bytes, extra_bytes), member);
    at += all.size();
    return member;
  }

  // Fields: mark, size, content. Mark 1 holds, in this order, the numbers that were too large.
  void read_zip64(Bytes extra, Member& member) const {
    while (extra.size() >= 4) {
      const std::uint64_t mark = little_endian(extra, 0, 2);
      const std::uint64_t size = little_endian(extra, 2, 2);
      if (size > extra.size() - 4) {
        fail("the directory of the archive is malformed");
      }
      Bytes content = extra.subspan(4, size);
      extra = extra.subspan(4 + size);
      if (mark != 1) {
        continue;
      }
      for (std::uint64_t* value : {&member.num_bytes, &member.stored_bytes, &member.offset}) {
        if (*value == kLarge && content.size() >= 8) {
          *value = little_endian(content, 0, 8);
          content = content.subspan(8);
        }
      }
    }
  }

  Bytes member_data(const Member& member) const {
    constexpr std::uint64_t kEncrypted = 1;
    if ((member.flags & kEncrypted) != 0 || member.method != 0) {
      throw UnsupportedError(source_ + ": " + quoted_name(member.name) +
                             " is compressed or encrypted; write it with numpy.savez");
    }
    if (number(member.offset, 0, 4) != kLocalMark || member.num_bytes != member.stored_bytes) {
      fail(quoted_name(member.name) + " is malformed");
    }
    const std::uint64_t start =
        kLocalBytes + number(member.offset, 26, 2) + number(member.offset, 28, 2);
    range(member.offset, start);
    const Bytes data = range(member.offset + start, member.num_bytes);
    if (crc32(data) != member.crc) {
      fail(quoted_name(member.name) + " has a wrong checksum");
    }
    return data;
  }

  const std::string& source_;
  Bytes file_;
};

// What the two headers of a member have in common, from "version needed" to the name's length.
std::string member_fields(const std::string& name, std::uint32_t crc, std::uint64_t num_bytes) {
  constexpr std::uint64_t kUtf8Name = 0x800;
  constexpr std::uint64_t kDate = 0x21;  // 1980-01-01, the first that there is
  std::string fields;
  append_little_endian(fields, 20, 2);  // version 2.0
  append_little_endian(fields, kUtf8Name, 2);
  append_little_endian(fields, 0, 2);  // stored
  append_little_endian(fields, 0, 2);  // midnight
  append_little_endian(fields, kDate, 2);
  append_little_endian(fields, crc, 4);
  append_little_endian(fields, num_bytes, 4);
  append_little_endian(fields, num_bytes, 4);
  append_little_endian(fields, name.size(), 2);
  return fields;
}

// Local header and name, with an extra field that brings the member to a multiple of 64.
std::string local_header(const std::string& name, const std::string& fields, std::uint64_t offset) {
  std::string header;
  append_little_endian(header, kLocalMark, 4);
  header += fields;
  const std::uint64_t end = offset + kLocalBytes + name.size() + 4;
  const std::uint64_t padding = (kAlignment - end % kAlignment) % kAlignment;
  append_little_endian(header, 4 + padding, 2);
  header += name;
  append_little_endian(header, 0xD935, 2);  // the mark that Android's zipalign uses for padding
  append_little_endian(header, padding, 2);
  return header + std::string(padding, '\0');
}

std::string directory_entry(const std::string& name, const std::string& fields,
                            std::uint64_t offset) {
  std::string entry;
  append_little_endian(entry, kDirectoryMark, 4);
  append_little_endian(entry, 20, 2);  // made by version 2.0
  entry += fields;
  entry.append(12, '\0');  // no extra field, no comment, disk 0, no attributes
  append_little_endian(entry, offset, 4);
  return entry + name;
}

std::string end_record(std::size_t count, std::uint64_t num_bytes, std::uint64_t offset) {
  std::string record;
  append_little_endian(record, kEndMark, 4);
  append_little_endian(record, 0, 4);  // disk 0
  append_little_endian(record, count, 2);
  append_little_endian(record, count, 2);
  append_little_endian(record, num_bytes, 4);
  append_little_endian(record, offset, 4);
  append_little_endian(record, 0, 2);  // no comment
  return record;
}

/// A piece of the archive: text, then an array's bytes.
struct Piece {
  std::string text;
  Bytes data;
};

// All of the archive in order; throws unless every number fits its field.
std::vector<Piece> archive(const std::string& path, const std::map<std::string, NpyArray>& arrays) {
  std::vector<Piece> pieces;
  std::string directory;
  std::uint64_t offset = 0;
  for (const auto& [name, array] : arrays) {
    const std::string header = npy_header(path + ": " + quoted_name(name), array);
    const std::string file_name = name + std::string(kSuffix);
    const Bytes data = array.bytes;
    if (name.empty() || file_name.size() > 0xFFFF) {
      throw ValueError(path + ": an array's name must have 1 to 65531 bytes");
    }
    const std::string fields =
        member_fields(file_name, crc32(data, crc32(bytes_of(header))), header.size() + data.size());
    pieces.push_back({local_header(file_name, fields, offset) + header, data});
    directory += directory_entry(file_name, fields, offset);
    offset += pieces.back().text.size() + data.size();
    if (offset >= kLarge || arrays.size() >= 0xFFFF) {
      throw ValueError(path + ": an archive holds less than 4 GiB and less than 65,535 arrays");
    }
  }
  pieces.push_back({directory + end_record(arrays.size(), directory.size(), offset), {}});
  return pieces;
}

}  // namespace

std::map<std::string, NpyArray> parse_npz(const std::string& source, Bytes file) {
  return ZipReader(source, file).arrays();
}

std::map<std::string, NpyArray> read_npz(const std::string& path) {
  return parse_npz(path, read_file(path));
}

void write_npz(const std::string& path, const std::map<std::string, NpyArray>& arrays) {
  const std::vector<Piece> pieces = archive(path, arrays);
  std::uint64_t num_bytes = 0;
  for (const Piece& piece : pieces) {
    num_bytes += piece.text.size() + piece.data.size();
  }
  AtomicFile file(path, num_bytes);
  std::uint64_t offset = 0;
  for (const Piece& piece : pieces) {
    file.write(offset, piece.text.data(), piece.text.size());
    offset += piece.text.size();
    file.write(offset, piece.data.data(), piece.data.size());
    offset += piece.data.size();
  }
  file.finish();
}

}  // namespace paperlab::io
