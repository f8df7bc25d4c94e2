#pragma once
/// \file
/// Progress of the rows: a bar with rate and time left on a terminal, a line now and then
/// elsewhere.

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <string>

namespace paperlab::experiments {

/// A duration as people say it: "0.2 s", "12 s", "3 min 5 s", "1 h 2 min".
std::string format_duration(double seconds);

/// "F1  45 %  900/2000  350/s  3.1 s left".
std::string progress_text(const std::string& row, std::int64_t done, std::int64_t total,
                          double elapsed_s);

class Progress {
 public:
  /// \param interval_s  Least time between two updates that are shown.
  Progress(std::FILE* stream, bool is_terminal, double interval_s);

  /// On stdout: ten updates a second on a terminal, one in five seconds elsewhere.
  static Progress on_stdout();

  void begin(const std::string& row);
  void update(std::int64_t done, std::int64_t total);
  /// Replaces the bar with a line for the finished row; returns the seconds since `begin`.
  double end();
  /// Forgets the bar.
  void abandon();
  /// Prints a line of text.
  void say(const std::string& text);

 private:
  using Clock = std::chrono::steady_clock;
  void clear_bar();
  double elapsed_s() const;

  std::FILE* stream_;
  bool is_terminal_;
  double interval_s_;
  bool has_bar_ = false;
  std::string row_;
  Clock::time_point begin_;
  Clock::time_point shown_;
};

}  // namespace paperlab::experiments
