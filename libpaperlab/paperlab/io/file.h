#pragma once
/// \file
/// Files by position: read in parallel or mapped, and written so that nobody sees a half of one.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "paperlab/core/export.h"
#include "paperlab/core/parallel.h"

namespace paperlab::io {

/// A range of a file and where its bytes go.
struct ReadRange {
  std::uint64_t offset = 0;
  std::uint64_t num_bytes = 0;
  void* destination = nullptr;
};

/// A file's bytes in memory, read from disk when they are touched. Writes, where allowed, stay in
/// memory: the file never changes. Somebody who shortens the file meanwhile ends the program
/// (SIGBUS), so this is for files that are replaced by rename, never rewritten in place.
class PAPERLAB_API Mapping {
 public:
  Mapping(int descriptor, std::uint64_t num_bytes, bool is_writable, const std::string& path);
  ~Mapping();
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;

  std::byte* data() const { return data_; }  ///< null if the file is empty
  std::uint64_t num_bytes() const { return num_bytes_; }

  /// Gives back the memory of pages that lie in this range; the next access reads them from the
  /// file again. Bytes that were written there are lost.
  void release(std::uint64_t offset, std::uint64_t num_bytes) const;

 private:
  std::byte* data_ = nullptr;
  std::uint64_t num_bytes_;
};

/// A regular file that is open for reading. Safe to use from several threads.
class PAPERLAB_API InputFile {
 public:
  /// \throws IoError     if it is missing, a directory, or not readable.
  /// \throws ValueError  if it is no regular file (a pipe, a device).
  explicit InputFile(std::string path);
  ~InputFile();
  InputFile(InputFile&& other) noexcept;
  InputFile& operator=(InputFile&&) = delete;

  const std::string& path() const { return path_; }
  std::uint64_t num_bytes() const { return num_bytes_; }  ///< when it was opened

  /// Reads one range on this thread.
  /// \throws IoError     if the system refuses.
  /// \throws ValueError  if the file ends before the range does.
  void read(const ReadRange& range) const;

  /// Reads the ranges in pieces on all threads of `executor`. Destinations should be fresh memory:
  /// large ones are asked for in huge pages.
  void read(const std::vector<ReadRange>& ranges, const Executor& executor) const;

  /// The whole file in memory; it stays valid after this object has gone.
  std::shared_ptr<Mapping> map(bool is_writable = false) const;

 private:
  std::string path_;
  int descriptor_;
  std::uint64_t num_bytes_ = 0;
};

/// A file of known size that appears under its name when it is finished: it is written as
/// `path`.tmp, which the destructor removes unless finish() has renamed it. One writer of a path at
/// a time.
class PAPERLAB_API AtomicFile {
 public:
  /// Reserves the space.
  /// \throws IoError  if the folder is missing, `path` is there and no regular file, the disk is
  ///                  full, ...
  AtomicFile(std::string path, std::uint64_t num_bytes);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  const std::string& path() const { return path_; }

  /// Writes `num_bytes` bytes at `offset`.
  void write(std::uint64_t offset, const void* data, std::uint64_t num_bytes);

  /// Brings the bytes to disk; nothing can be written afterwards.
  void sync();

  /// sync(), then renames. What was in `path` before is gone only now.
  void finish();

  /// Removes the temporary file, if it is there; what was in `path` stays.
  void discard();

 private:
  void close_file();

  std::string path_;
  std::string temporary_;
  int descriptor_ = -1;
  bool is_pending_ = false;  // the temporary file exists
};

}  // namespace paperlab::io
