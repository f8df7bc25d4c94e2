#include "paperlab/core/json.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <cmath>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <limits>
#include <string>

#include "paperlab/core/error.h"

namespace paperlab {
namespace {

class JsonTest : public testing::Test {
 public:
  JsonTest() : dir_(testing::TempDir() + "json-XXXXXX") {
    EXPECT_NE(mkdtemp(dir_.data()), nullptr);
  }
  ~JsonTest() override { std::filesystem::remove_all(dir_); }

 protected:
  std::string file(const std::string& text) const {
    std::ofstream(dir_ + "/file.json") << text;
    return dir_ + "/file.json";
  }

  /// What read_json says about a file with `text`, after the file's name.
  std::string complaint(const std::string& text) const {
    const std::string path = file(text);
    try {
      read_json(path);
    } catch (const ValueError& error) {
      const std::string message = error.what();
      EXPECT_EQ(message.substr(0, path.size()), path);
      return message.substr(path.size());
    }
    return "nothing";
  }

  std::string read_back() const {
    std::ifstream stream(dir_ + "/file.json");
    return {std::istreambuf_iterator<char>(stream), {}};
  }

  bool has_temporary() const { return std::filesystem::exists(dir_ + "/file.json.tmp"); }

  std::string dir_;
};

TEST_F(JsonTest, MalformedFileIsNamedWithItsLine) {
  EXPECT_NE(complaint("{\n \"a\": 1,\n \"b\" 2\n}").find(": line 3: syntax error"),
            std::string::npos);
  EXPECT_EQ(complaint("").rfind(": line 1: ", 0), 0U);
  EXPECT_EQ(complaint("{\n\"a\": [1,\n\n").rfind(": line 4: ", 0), 0U);
  EXPECT_EQ(complaint("{\"a\": 1}\n{").rfind(": line 2: ", 0), 0U);
  EXPECT_EQ(complaint("{\"a\": NaN}").rfind(": line 1: ", 0), 0U);
  EXPECT_EQ(complaint("{\"a\":\n\"\xff\"}").rfind(": line 2: ", 0), 0U);
}

TEST_F(JsonTest, NumberThatNoDoubleHoldsIsMalformed) {
  EXPECT_NE(complaint("{\n\"a\": 1e999}").find(": line 2: number overflow"), std::string::npos);
}

TEST_F(JsonTest, DeepNestingIsRefusedAndNoCrash) {
  EXPECT_NE(complaint(std::string(1000000, '[')).find("nested more than 64 deep"),
            std::string::npos);
  EXPECT_NO_THROW(read_json(file(std::string(60, '[') + std::string(60, ']'))));
}

TEST_F(JsonTest, UnreadableFileIsAnIoErrorWithTheReason) {
  try {
    read_json(dir_ + "/none.json");
    ADD_FAILURE() << "nothing was thrown";
  } catch (const IoError& error) {
    EXPECT_EQ(error.what(), dir_ + "/none.json: No such file or directory");
  }
  EXPECT_THROW(read_json(dir_), IoError);
}

TEST_F(JsonTest, NumbersComeBackWithTheSameBits) {
  for (const double value : {0.1, 1.0 / 3.0, -0.0, 5e-324, 1e308, 9007199254740993.0, 576.0}) {
    write_json(dir_ + "/file.json", json_number(value));
    const double back = read_json(dir_ + "/file.json").get<double>();
    EXPECT_EQ(back, value);
    EXPECT_EQ(std::signbit(back), std::signbit(value));
  }
}

TEST_F(JsonTest, WholeNumbersHaveNoFractionAndNotFiniteIsNull) {
  EXPECT_EQ(json_number(576.0).dump(), "576");
  EXPECT_EQ(json_number(-3.0).dump(), "-3");
  EXPECT_EQ(json_number(0.5).dump(), "0.5");
  EXPECT_TRUE(json_number(std::numeric_limits<double>::infinity()).is_null());
  EXPECT_TRUE(json_number(std::nan("")).is_null());
}

TEST_F(JsonTest, TextHasOneLineForEachArrayOfPlainValues) {
  const Json value = {{"b", {1, 2}}, {"a", {{"x", nullptr}}}, {"c", Json::object()}};
  EXPECT_EQ(format_json(value),
            "{\n \"a\": {\n  \"x\": null\n },\n \"b\": [1, 2],\n \"c\": {}\n}\n");
  EXPECT_EQ(Json::parse(format_json(value)), value);
}

TEST_F(JsonTest, WriteReplacesTheFileWholeAndLeavesNoTemporary) {
  file("old");
  write_json(dir_ + "/file.json", {{"a", 1}});
  EXPECT_EQ(read_back(), "{\n \"a\": 1\n}\n");
  EXPECT_FALSE(has_temporary());
}

TEST_F(JsonTest, FailedWriteKeepsTheOldFileAndLeavesNoTemporary) {
  file("old");
  rlimit before{};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
  const rlimit tiny{100, before.rlim_max};
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &tiny), 0);
  EXPECT_THROW(write_json(dir_ + "/file.json", std::string(1000, 'x')), IoError);
  setrlimit(RLIMIT_FSIZE, &before);
  std::signal(SIGXFSZ, handler);
  EXPECT_EQ(read_back(), "old");
  EXPECT_FALSE(has_temporary());
}

TEST_F(JsonTest, TargetThatCannotBeReplacedLeavesNoTemporary) {
  std::filesystem::create_directories(dir_ + "/file.json/inside");
  EXPECT_THROW(write_json(dir_ + "/file.json", 1), IoError);
  EXPECT_FALSE(has_temporary());
  EXPECT_THROW(write_json(dir_ + "/none/file.json", 1), IoError);
}

}  // namespace
}  // namespace paperlab
