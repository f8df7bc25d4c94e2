#include "experiments/common/options.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <map>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "experiments/common/usage.h"
#include "paperlab/core/parallel.h"
#include "tests/experiments/scratch.h"

namespace paperlab::experiments {
namespace {

Options parse(std::vector<const char*> arguments, const std::vector<Field>& fields = {}) {
  arguments.insert(arguments.begin(), "toy-paper");
  return parse_options(static_cast<int>(arguments.size()), arguments.data(), "toy-paper", fields);
}

TEST(OptionsTest, DefaultsAreThoseOfTheLauncher) {
  const Options options = parse({});
  EXPECT_EQ(options.config_file, "experiments/toy_paper/config.json");
  EXPECT_EQ(options.preset, "small");
  EXPECT_EQ(options.out, "results");
  EXPECT_TRUE(options.resumes);
  EXPECT_EQ(options.limit_s, 0);
  EXPECT_EQ(parse({"--preset", "gpu"}).limit_s, 480);
}

TEST(OptionsTest, EachOptionIsRead) {
  const Options options =
      parse({"--config", "c", "--preset=full", "--out", "o", "--only", "F1,F 2", "--override", "f",
             "--set", "a=[1, 2]", "--set", "b=-1", "--resume", "never", "--limit", "1.5"});
  EXPECT_EQ(options.config_file, "c");
  EXPECT_EQ(options.preset, "full");
  EXPECT_EQ(options.out, "o");
  EXPECT_EQ(options.only, (std::vector<std::string>{"F1", "F 2"}));
  EXPECT_EQ(options.override_file, "f");
  EXPECT_EQ(options.assignments, (std::vector<std::string>{"a=[1, 2]", "b=-1"}));
  EXPECT_FALSE(options.resumes);
  EXPECT_EQ(options.limit_s, 1.5);
}

TEST(OptionsTest, TextsAreNamesWithFoldersOrReasons) {
  const Options options = parse({"--corpus", "a:en=/x=y", "--corpus", "b=z", "--no-corpus",
                                 "c=no network: a=b", "--list-corpora"});
  EXPECT_EQ(options.corpora, (std::map<std::string, std::string>{{"a:en", "/x=y"}, {"b", "z"}}));
  EXPECT_EQ(options.missing_corpora.at("c"), "no network: a=b");
  EXPECT_TRUE(options.lists_corpora);
}

TEST(OptionsTest, WrongArgumentsAreNamed) {
  const std::vector<std::pair<std::vector<const char*>, std::string>> cases = {
      {{"--preset", "smal"}, "--preset must be smoke|small|full|gpu, got \"smal\" (did you mean"},
      {{"--resume", "yes"}, "--resume must be auto|never, got \"yes\""},
      {{"--limit", "-1"}, "--limit"},
      {{"--limit", "inf"}, "--limit must be a number of seconds > 0, got \"inf\""},
      {{"--only", "F1,,F2"}, "--only must be ROW[,ROW...]"},
      {{"--presets", "small"}, "unknown argument \"--presets\" (did you mean \"--preset\"?)"},
      {{"--corpus", "=x"}, "--corpus must be NAME=FOLDER, got \"=x\""},
      {{"--no-corpus", "x"}, "--no-corpus must be NAME=REASON, got \"x\""},
      {{"small"}, "unknown argument \"small\""},
      {{"--out"}, "--out"},
      {{"--out", ""}, "--out must be a folder"},
  };
  for (const auto& [arguments, part] : cases) {
    PAPERLAB_EXPECT_THROW(parse(arguments), UsageError, part);
  }
}

TEST(OptionsTest, HelpFitsAPageAndListsSettingsWithDefaults) {
  std::vector<double> values(20);
  std::vector<Field> fields;
  for (std::size_t i = 0; i < values.size(); ++i) {
    values[i] = static_cast<double>(i);
    fields.push_back({"learning_rate_" + std::to_string(i), &values[i]});
  }
  const std::string help = parse({"--help"}, fields).help;
  EXPECT_NE(help.find("--preset NAME"), std::string::npos) << help;
  EXPECT_NE(help.find("learning_rate_19=19.0"), std::string::npos) << help;
  EXPECT_LE(std::count(help.begin(), help.end(), '\n'), 40);
  std::istringstream lines(help);
  for (std::string line; std::getline(lines, line);) {
    EXPECT_LE(line.size(), 100U) << line;
  }
}

class EnvironmentTest : public testing::Test {
 public:
  ~EnvironmentTest() override {
    unsetenv("PAPERLAB_NUM_THREADS");
    unsetenv("PAPERLAB_CPU");
  }
};

TEST_F(EnvironmentTest, ThreadsComeFromTheVariableOrTheLibrary) {
  unsetenv("PAPERLAB_NUM_THREADS");
  EXPECT_EQ(requested_num_threads(), get_num_threads());
  setenv("PAPERLAB_NUM_THREADS", "", 1);
  EXPECT_EQ(requested_num_threads(), get_num_threads());
  setenv("PAPERLAB_NUM_THREADS", "3", 1);
  EXPECT_EQ(requested_num_threads(), 3);
  for (const char* text : {"0", "-1", "1025", "two", "2x", "99999999999"}) {
    setenv("PAPERLAB_NUM_THREADS", text, 1);
    PAPERLAB_EXPECT_THROW(requested_num_threads(), UsageError,
                          "PAPERLAB_NUM_THREADS must be an integer in 1..1024, got ");
  }
}

TEST_F(EnvironmentTest, InstructionSetIsOneOfFourWords) {
  unsetenv("PAPERLAB_CPU");
  EXPECT_EQ(requested_cpu_isa(), "auto");
  setenv("PAPERLAB_CPU", "generic", 1);
  EXPECT_EQ(requested_cpu_isa(), "generic");
  setenv("PAPERLAB_CPU", "avx512f", 1);
  PAPERLAB_EXPECT_THROW(requested_cpu_isa(), UsageError, "(did you mean \"avx512\"?)");
}

}  // namespace
}  // namespace paperlab::experiments
