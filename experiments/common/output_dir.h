#pragma once
/// \file
/// The folder of one paper's results: made, locked, and left without temporary files.

#include <string>

namespace paperlab::experiments {

/// From now on SIGINT and SIGTERM remove the temporary files of the open OutputDir and end the
/// process with 130 and 143; SIGXFSZ becomes an error of write().
void install_signal_handlers();

/// DIR/<paper>, held by this process alone. At most one exists at a time.
class OutputDir {
 public:
  /// Makes the folder where it is missing. \throws IoError if it cannot be had or another run has
  /// it.
  OutputDir(const std::string& out, const std::string& paper);
  ~OutputDir();
  OutputDir(const OutputDir&) = delete;
  OutputDir& operator=(const OutputDir&) = delete;

  /// Removes what a killed run has left half-written.
  void remove_temporaries() const;

  std::string result_file() const { return path_ + "/result.json"; }
  std::string config_file() const { return path_ + "/config.json"; }

 private:
  std::string path_;
  int lock_ = -1;
};

}  // namespace paperlab::experiments
