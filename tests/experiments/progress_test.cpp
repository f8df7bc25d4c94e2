#include "experiments/common/progress.h"

#include <gtest/gtest.h>

#include <cstdio>
#include <string>

namespace paperlab::experiments {
namespace {

/// What `show` prints through a Progress.
template <class Show>
std::string printed(bool is_terminal, double interval_s, Show show) {
  std::FILE* file = std::tmpfile();
  if (file == nullptr) {
    return "no temporary file";
  }
  Progress progress(file, is_terminal, interval_s);
  show(progress);
  EXPECT_EQ(std::fseek(file, 0, SEEK_SET), 0);
  std::string text;
  for (int c = std::fgetc(file); c != EOF; c = std::fgetc(file)) {
    text += static_cast<char>(c);
  }
  std::fclose(file);
  return text;
}

void one_row(Progress& progress) {
  progress.begin("F1");
  progress.update(1, 2);
  progress.end();
}

TEST(FormatDurationTest, UnitsGrowWithTheDuration) {
  EXPECT_EQ(format_duration(0.21), "0.2 s");
  EXPECT_EQ(format_duration(9.96), "10 s");
  EXPECT_EQ(format_duration(59.7), "1 min 0 s");
  EXPECT_EQ(format_duration(185), "3 min 5 s");
  EXPECT_EQ(format_duration(3725), "1 h 2 min");
}

TEST(ProgressTextTest, HasShareRateAndTimeLeft) {
  EXPECT_EQ(progress_text("F1", 900, 2000, 2.0), "F1  45 %  900/2000  450/s  2.4 s left");
  EXPECT_EQ(progress_text("F1", 0, 2000, 2.0), "F1  0 %  0/2000");
  EXPECT_EQ(progress_text("F1", 5, 2, 1.0), "F1  100 %  5/2  5.0/s  0.0 s left");
  EXPECT_EQ(progress_text("F1", 0, 0, 0.0), "F1  0 %  0/0");
}

TEST(ProgressTest, ElsewhereThanOnATerminalThereAreWholeLinesOnly) {
  const std::string text = printed(false, 0, one_row);
  EXPECT_EQ(text.find('\r'), std::string::npos);
  EXPECT_EQ(text.find('\033'), std::string::npos);
  EXPECT_EQ(text.rfind("F1  50 %  1/2", 0), 0U);
  EXPECT_NE(text.find("\nF1  done in 0.0 s\n"), std::string::npos);
}

TEST(ProgressTest, OnATerminalTheBarIsWipedBeforeALine) {
  const std::string text = printed(true, 0, one_row);
  EXPECT_NE(text.find("[###############...............] F1  50 %"), std::string::npos);
  EXPECT_NE(text.find("\r\033[KF1  done in"), std::string::npos);
}

TEST(ProgressTest, UpdatesWithinTheIntervalAreNotShown) {
  EXPECT_EQ(printed(false, 1000, one_row), "F1  done in 0.0 s\n");
}

}  // namespace
}  // namespace paperlab::experiments
