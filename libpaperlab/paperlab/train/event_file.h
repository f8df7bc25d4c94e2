#pragma once
/// \file
/// Scalars as TensorBoard reads them: a file of records, each of which is a protocol buffer.
/// Sources: the record format of TensorFlow (tfrecord) and its messages Event, Summary, SessionLog.

#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "paperlab/core/export.h"

namespace paperlab::train {

using Scalars = std::vector<std::pair<std::string, double>>;  ///< tag, value

/// The cyclic redundancy check CRC-32C (Castagnoli) of the bytes.
PAPERLAB_API std::uint32_t crc32c(std::string_view bytes);

/// A record: length, masked CRC of the length, data, masked CRC of the data.
PAPERLAB_API std::string framed_record(std::string_view data);

/// An Event message with scalars; values are float32 there.
/// \param wall_time  seconds since 1970.
PAPERLAB_API std::string scalar_event(double wall_time, std::int64_t step, const Scalars& scalars);

/// DIR/events.out.tfevents.SECONDS.HOST.PID: made with the first record, so that a run that does
/// nothing leaves nothing. Names ascend within a directory, as TensorBoard reads them. Wall times
/// occur here alone.
class PAPERLAB_API EventFile {
 public:
  /// \param first_step  scalars of this step and later that an earlier file holds no longer count.
  EventFile(std::string directory, std::int64_t first_step);

  /// Appends the scalars and hands them to the system.
  /// \throws IoError  if the system refuses.
  void append(std::int64_t step, const Scalars& scalars);

  /// The files of a directory, sorted by name.
  static std::vector<std::string> files(const std::string& directory);

 private:
  void open();

  std::string directory_;
  std::string path_{};
  std::int64_t first_step_;
  std::unique_ptr<std::FILE, int (*)(std::FILE*)> file_;
};

}  // namespace paperlab::train
