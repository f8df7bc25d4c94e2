#include "paperlab/io/file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <utility>

#include "paperlab/core/error.h"

namespace paperlab::io {
namespace {

constexpr std::uint64_t kPieceBytes = std::uint64_t{8} << 20;     // of parallel reads
constexpr std::uint64_t kHugePageBytes = std::uint64_t{2} << 20;  // x86-64
constexpr std::uint64_t kCallBytes = std::uint64_t{1} << 30;  // Linux moves at most 2 GiB a call

[[noreturn]] void throw_io_error(const std::string& path, int error) {
  throw IoError(path + ": " + std::strerror(error), error);
}

// open() would stop at a zero byte and take another file.
void check_path(const std::string& path) {
  if (path.empty() || path.find('\0') != std::string::npos) {
    throw ValueError(path.empty() ? "a file's path must not be empty"
                                  : "a file's path must not contain a zero byte");
  }
}

// Fresh memory in pages of 2 MiB costs a fraction of the page faults; a refusal changes nothing.
void ask_for_huge_pages(const ReadRange& range) {
  const auto begin = reinterpret_cast<std::uintptr_t>(range.destination);
  const std::uintptr_t first = (begin + kHugePageBytes - 1) / kHugePageBytes * kHugePageBytes;
  const std::uintptr_t last = (begin + range.num_bytes) / kHugePageBytes * kHugePageBytes;
  if (first < last) {
    const std::uintptr_t offset = first - begin;
    madvise(static_cast<char*>(range.destination) + offset, last - first, MADV_HUGEPAGE);
  }
}

}  // namespace

Mapping::Mapping(int descriptor, std::uint64_t num_bytes, bool is_writable, const std::string& path)
    : num_bytes_(num_bytes) {
  if (num_bytes == 0) {
    return;
  }
  const int protection = PROT_READ | (is_writable ? PROT_WRITE : 0);
  // The system would keep memory for a copy of all that may be written: more than there may be.
  const int flags = MAP_PRIVATE | (is_writable ? MAP_NORESERVE : 0);
  void* data = mmap(nullptr, num_bytes, protection, flags, descriptor, 0);
  if (data == MAP_FAILED) {
    throw_io_error(path, errno);
  }
  data_ = static_cast<std::byte*>(data);
}

Mapping::~Mapping() {
  if (data_ != nullptr) {
    munmap(data_, num_bytes_);
  }
}

// Pages that hold other bytes too stay. A refusal changes nothing.
void Mapping::release(std::uint64_t offset, std::uint64_t num_bytes) const {
  static const auto page = static_cast<std::uint64_t>(sysconf(_SC_PAGESIZE));
  const std::uint64_t begin = std::min(offset, num_bytes_);
  const std::uint64_t end = begin + std::min(num_bytes, num_bytes_ - begin);
  const std::uint64_t first = (begin + page - 1) / page * page;
  const std::uint64_t last = end == num_bytes_ ? end : end / page * page;
  if (first < last) {
    madvise(data_ + first, last - first, MADV_DONTNEED);
  }
}

// O_NONBLOCK: opening a pipe would wait for a writer.
InputFile::InputFile(std::string path) : path_(std::move(path)), descriptor_(-1) {
  check_path(path_);
  descriptor_ = open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  struct stat status{};
  if (descriptor_ < 0 || fstat(descriptor_, &status) != 0) {
    const int error = errno;
    if (descriptor_ >= 0) {
      close(descriptor_);
    }
    throw_io_error(path_, error);
  }
  if (!S_ISREG(status.st_mode)) {
    close(descriptor_);
    if (S_ISDIR(status.st_mode)) {
      throw_io_error(path_, EISDIR);
    }
    throw ValueError(path_ + ": is no regular file");
  }
  num_bytes_ = static_cast<std::uint64_t>(status.st_size);
}

InputFile::~InputFile() {
  if (descriptor_ >= 0) {
    close(descriptor_);
  }
}

InputFile::InputFile(InputFile&& other) noexcept
    : path_(std::move(other.path_)),
      descriptor_(std::exchange(other.descriptor_, -1)),
      num_bytes_(other.num_bytes_) {}

void InputFile::read(const ReadRange& range) const {
  auto* destination = static_cast<char*>(range.destination);
  std::uint64_t done = 0;
  while (done < range.num_bytes) {
    const std::uint64_t wanted = std::min(range.num_bytes - done, kCallBytes);
    const ssize_t count =
        pread(descriptor_, destination + done, wanted, static_cast<off_t>(range.offset + done));
    if (count == 0) {
      throw ValueError(path_ + ": ends at byte " + std::to_string(range.offset + done) +
                       ", while byte " + std::to_string(range.offset + range.num_bytes - 1) +
                       " is wanted");
    }
    if (count > 0) {
      done += static_cast<std::uint64_t>(count);
    } else if (errno != EINTR) {
      throw_io_error(path_, errno);
    }
  }
}

void InputFile::read(const std::vector<ReadRange>& ranges, const Executor& executor) const {
  std::vector<ReadRange> pieces;
  for (const ReadRange& range : ranges) {
    ask_for_huge_pages(range);
    for (std::uint64_t done = 0; done < range.num_bytes; done += kPieceBytes) {
      pieces.push_back({range.offset + done, std::min(kPieceBytes, range.num_bytes - done),
                        static_cast<char*>(range.destination) + done});
    }
  }
  parallel_for(executor, static_cast<std::int64_t>(pieces.size()),
               [&](std::int64_t piece, int) { read(pieces[static_cast<std::size_t>(piece)]); });
}

std::shared_ptr<Mapping> InputFile::map(bool is_writable) const {
  return std::make_shared<Mapping>(descriptor_, num_bytes_, is_writable, path_);
}

AtomicFile::AtomicFile(std::string path, std::uint64_t num_bytes)
    : path_(std::move(path)), temporary_(path_ + ".tmp") {
  check_path(path_);
  struct stat status{};
  if (stat(path_.c_str(), &status) == 0 && !S_ISREG(status.st_mode)) {
    if (S_ISDIR(status.st_mode)) {
      throw_io_error(path_, EISDIR);  // rename would say so only after all the work
    }
    throw IoError(path_ + ": not a regular file; a rename would replace it", EINVAL);
  }
  descriptor_ = open(temporary_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (descriptor_ < 0) {
    throw_io_error(path_, errno);
  }
  is_pending_ = true;
  // A full disk is known before the work. Not every file system can reserve space.
  if (num_bytes > 0 && fallocate(descriptor_, 0, 0, static_cast<off_t>(num_bytes)) != 0 &&
      (errno == ENOSPC || errno == EFBIG || errno == EDQUOT)) {
    const int error = errno;
    discard();
    throw_io_error(path_, error);
  }
}

AtomicFile::~AtomicFile() { discard(); }

void AtomicFile::discard() {
  close_file();
  if (std::exchange(is_pending_, false)) {
    unlink(temporary_.c_str());
  }
}

void AtomicFile::close_file() {
  if (descriptor_ >= 0) {
    close(std::exchange(descriptor_, -1));
  }
}

void AtomicFile::write(std::uint64_t offset, const void* data, std::uint64_t num_bytes) {
  const auto* source = static_cast<const char*>(data);
  std::uint64_t done = 0;
  while (done < num_bytes) {
    const std::uint64_t wanted = std::min(num_bytes - done, kCallBytes);
    const ssize_t count =
        pwrite(descriptor_, source + done, wanted, static_cast<off_t>(offset + done));
    if (count >= 0) {
      done += static_cast<std::uint64_t>(count);
    } else if (errno != EINTR) {
      throw_io_error(path_, errno);
    }
  }
}

void AtomicFile::sync() {
  if (descriptor_ < 0) {
    return;
  }
  const bool is_synced = fsync(descriptor_) == 0;
  const int sync_error = errno;
  const bool is_closed = close(std::exchange(descriptor_, -1)) == 0;
  if (!is_synced || !is_closed) {
    throw_io_error(path_, is_synced ? errno : sync_error);
  }
}

void AtomicFile::finish() {
  sync();
  if (std::rename(temporary_.c_str(), path_.c_str()) != 0) {
    throw_io_error(path_, errno);
  }
  is_pending_ = false;
}

}  // namespace paperlab::io
