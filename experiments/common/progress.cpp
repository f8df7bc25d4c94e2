#include "experiments/common/progress.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <string_view>

namespace paperlab::experiments {
namespace {

std::string fixed(double value, int decimals) {
  std::array<char, 64> text{};
  std::snprintf(text.data(), text.size(), "%.*f", decimals, value);
  return text.data();
}

double share(std::int64_t done, std::int64_t total) {
  return total <= 0 ? 0.0
                    : std::clamp(static_cast<double>(done) / static_cast<double>(total), 0.0, 1.0);
}

std::string bar(double filled) {
  constexpr std::size_t kWidth = 30;
  const auto cells = static_cast<std::size_t>(filled * kWidth);
  return "[" + std::string(cells, '#') + std::string(kWidth - cells, '.') + "] ";
}

}  // namespace

std::string format_duration(double seconds) {
  if (seconds < 9.95) {
    return fixed(seconds, 1) + " s";
  }
  const long whole = std::lround(seconds);
  if (whole < 60) {
    return std::to_string(whole) + " s";
  }
  if (whole < 3600) {
    return std::to_string(whole / 60) + " min " + std::to_string(whole % 60) + " s";
  }
  return std::to_string(whole / 3600) + " h " + std::to_string(whole % 3600 / 60) + " min";
}

std::string progress_text(const std::string& row, std::int64_t done, std::int64_t total,
                          double elapsed_s) {
  std::string text = row + "  " + fixed(std::floor(100 * share(done, total)), 0) + " %  " +
                     std::to_string(done) + "/" + std::to_string(total);
  if (done > 0 && elapsed_s > 0) {
    const double rate = static_cast<double>(done) / elapsed_s;
    const double left_s = static_cast<double>(std::max<std::int64_t>(total - done, 0)) / rate;
    text += "  " + fixed(rate, rate < 10 ? 1 : 0) + "/s  " + format_duration(left_s) + " left";
  }
  return text;
}

Progress::Progress(std::FILE* stream, bool is_terminal, double interval_s)
    : stream_(stream), is_terminal_(is_terminal), interval_s_(interval_s) {}

Progress Progress::on_stdout() {
  const char* term = std::getenv("TERM");
  const bool is_dumb = term == nullptr || std::string_view(term) == "dumb";
  const bool is_terminal = isatty(STDOUT_FILENO) == 1 && !is_dumb;
  return {stdout, is_terminal, is_terminal ? 0.1 : 5.0};
}

void Progress::begin(const std::string& row) {
  row_ = row;
  begin_ = shown_ = Clock::now();
}

void Progress::update(std::int64_t done, std::int64_t total) {
  const auto now = Clock::now();
  if (std::chrono::duration<double>(now - shown_).count() < interval_s_) {
    return;
  }
  shown_ = now;
  const std::string text = progress_text(row_, done, total, elapsed_s());
  if (!is_terminal_) {
    say(text);
    return;
  }
  std::fputs(("\r\033[K" + bar(share(done, total)) + text).c_str(), stream_);
  std::fflush(stream_);
  has_bar_ = true;
}

double Progress::end() {
  const double seconds = elapsed_s();
  say(row_ + "  done in " + format_duration(seconds));
  return seconds;
}

void Progress::abandon() {
  clear_bar();
  std::fflush(stream_);
}

void Progress::say(const std::string& text) {
  clear_bar();
  std::fputs((text + "\n").c_str(), stream_);
  std::fflush(stream_);
}

void Progress::clear_bar() {
  if (has_bar_) {
    std::fputs("\r\033[K", stream_);
    has_bar_ = false;
  }
}

double Progress::elapsed_s() const {
  return std::chrono::duration<double>(Clock::now() - begin_).count();
}

}  // namespace paperlab::experiments
