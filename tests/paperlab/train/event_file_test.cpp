#include "paperlab/train/event_file.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>

#include "paperlab/core/error.h"
#include "tests/experiments/scratch.h"

namespace paperlab::train {
namespace {

std::string hex(const std::string& bytes) {
  std::string text;
  for (const char byte : bytes) {
    constexpr char kDigits[] = "0123456789abcdef";
    text += kDigits[static_cast<unsigned char>(byte) >> 4];
    text += kDigits[static_cast<unsigned char>(byte) & 15];
  }
  return text;
}

// The values of RFC 3720, appendix B.4, and of the usual check string.
TEST(Crc32c, IsThatOfTheStandard) {
  EXPECT_EQ(crc32c("123456789"), 0xE3069283U);
  EXPECT_EQ(crc32c(std::string(32, '\0')), 0x8A9136AAU);
  EXPECT_EQ(crc32c(std::string(32, '\xFF')), 0x62A8AB43U);
  std::string ascending;
  for (int i = 0; i < 32; ++i) {
    ascending += static_cast<char>(i);
  }
  EXPECT_EQ(crc32c(ascending), 0x46DD794EU);
  EXPECT_EQ(crc32c(""), 0U);
}

TEST(FramedRecord, HasLengthAndChecks) {
  const std::string record = framed_record("abc");
  ASSERT_EQ(record.size(), 8U + 4 + 3 + 4);
  EXPECT_EQ(hex(record.substr(0, 8)), "0300000000000000");
  EXPECT_EQ(record.substr(12, 3), "abc");
  const std::uint32_t crc = crc32c("abc");
  const std::uint32_t masked = ((crc >> 15) | (crc << 17)) + 0xA282EAD8U;
  std::string bytes;
  for (int i = 0; i < 4; ++i) {
    bytes += static_cast<char>(masked >> (8 * i));
  }
  EXPECT_EQ(record.substr(15), bytes);
}

// Written out by hand: 1.0 is 3ff0..., 2.5f is 40200000, 300 is ac 02.
TEST(ScalarEvent, IsTheMessageByteByByte) {
  EXPECT_EQ(hex(scalar_event(1.0, 300, {{"ab", 2.5}})),
            "09000000000000f03f"  // 1: double
            "10ac02"              // 2: varint
            "2a0b"                // 5: Summary of 11 bytes
            "0a09"                //   1: Value of 9 bytes
            "0a026162"            //     1: tag
            "1500002040");        //     2: float
}

std::string content(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

TEST(EventFile, IsMadeWithTheFirstRecordAndHasItAtOnce) {
  const experiments::Scratch folder;
  EventFile events(folder / ".", 0);
  EXPECT_TRUE(EventFile::files(folder / ".").empty());
  events.append(0, {{"loss", 1.0}});
  const auto files = EventFile::files(folder / ".");
  ASSERT_EQ(files.size(), 1U);
  const std::string first = content(files[0]);
  EXPECT_NE(first.find("brain.Event:2"), std::string::npos);
  EXPECT_NE(first.find("loss"), std::string::npos);
  events.append(1, {{"loss", 2.0}, {"rate", 3.0}});
  const std::string second = content(files[0]);
  EXPECT_EQ(second.substr(0, first.size()), first);
  EXPECT_NE(second.find("rate", first.size()), std::string::npos);
}

TEST(EventFile, NamesAscendWithinASecond) {
  const experiments::Scratch folder;
  std::string newest;
  for (int i = 0; i < 5; ++i) {
    EventFile(folder / ".", i).append(i, {{"loss", 1.0}});
    const auto files = EventFile::files(folder / ".");
    ASSERT_EQ(files.size(), static_cast<std::size_t>(i + 1));
    EXPECT_GT(files.back(), newest);
    newest = files.back();
    EXPECT_NE(content(newest).find("loss"), std::string::npos);
  }
}

TEST(EventFile, SaysWhereItCannotWrite) {
  EventFile events("/nowhere/at/all", 0);
  EXPECT_ANY_THROW(events.append(0, {{"loss", 1.0}}));
}

}  // namespace
}  // namespace paperlab::train
