#include <gtest/gtest.h>

#include <cstdlib>
#include <string>
#include <vector>

#include "experiments/common/output_dir.h"
#include "tests/experiments/run_cases.h"

namespace paperlab::experiments {
namespace {

TEST_F(RunTest, AScalarOfTwoRowsIsAnError) {
  driver = [](const Config&, Driven& run) {
    run.row("F1", [&] { run.scalar("x", 1); });
    run.row("F2", [&] { run.scalar("x", 1); });
  };
  expect_failure(1, "scalar \"x\" is recorded twice", {"--resume", "never"});
}

TEST_F(RunTest, ARowThatTheDriverLacksIsRefusedBeforeAnyRow) {
  driver = [this](const Config&, Driven& run) { run.row("F1", [this] { ++num_bodies_; }); };
  expect_failure(2, "names the row \"F2\", which the driver lacks", {"--resume", "never"});
  EXPECT_EQ(num_bodies_, 0);
}

TEST_F(RunTest, ARowMayRecordItsTimedClaim) {
  config_["claims"][2]["row"] = "F1";
  driver = [](const Config&, Driven& run) {
    run.row("F1", [&] { run.claim("C9", 4); });
    run.row("F2", [] {});
  };
  EXPECT_EQ(call({"--preset", "full"}).code, 0);
  EXPECT_EQ(result()["claims"][2]["measured"], 4);
  EXPECT_EQ(result()["claims"][2]["verdict"], "holds");
}

TEST_F(RunTest, MistakesOfADriverAreErrors) {
  const std::vector<std::pair<std::function<void(Driven&)>, std::string>> cases = {
      {[](Driven& run) { run.row("F1", [&] { run.claim("C11", 1); }); },
       "config.json has no claim \"C11\" (did you mean \"C1\"?)"},
      {[](Driven& run) { run.row("F1", [&] { run.claim("C9", 1); }); }, "claim C9 is timed"},
      {[](Driven& run) { run.scalar("x", 1); }, "scalar \"x\" is recorded outside of a row"},
      {[](Driven& run) { run.series("x", {}); }, "series \"x\" is recorded outside of a row"},
      {[](Driven& run) { run.claim("C1", 1); }, "claim \"C1\" is recorded outside of a row"},
      {[](Driven& run) { run.row("F1", [&] { run.row("F2", [] {}); }); }, "within another"},
      {[](Driven& run) { run.row("F1", [&] { (void)run.value_of("y"); }); }, "scalar \"y\""},
      {[](Driven& run) {
         run.row("F1", [] {});
         run.row("F1", [] {});
       },
       "row F1 is declared twice"},
      {[](Driven& run) { run.row("F1", [&] { run.series("x", {{"a", {1}}, {"b", {}}}); }); },
       "columns must have equal lengths, got 1 and 0"},
      {[](Driven&) {
         throw 3; /* NOLINT(bugprone-std-exception-baseclass) */
       },
       "unknown error"},
  };
  for (const auto& [body, part] : cases) {
    driver = [&body = body](const Config&, Driven& run) {
      body(run);
      run.row("F2", [] {});
    };
    expect_failure(1, part, {"--resume", "never"});
  }
}

TEST_F(RunTest, UsageErrorsComeBeforeAnyWork) {
  expect_failure(2, "--only: the preset small has no row \"F3\" (did you mean \"F1\"?)",
                 {"--only", "F3"});
  expect_failure(2, "--set: unknown key \"scal\"", {"--set", "scal=1"});
  expect_failure(2, "no preset \"gpu\"", {"--preset", "gpu"});
  setenv("PAPERLAB_NUM_THREADS", "many", 1);
  expect_failure(2, "PAPERLAB_NUM_THREADS must be");
  unsetenv("PAPERLAB_NUM_THREADS");
  setenv("PAPERLAB_CPU", "sse", 1);
  expect_failure(2, "PAPERLAB_CPU must be generic|avx2|avx512|auto, got \"sse\"");
  unsetenv("PAPERLAB_CPU");
  EXPECT_FALSE(scratch_.has("out"));
  EXPECT_EQ(num_bodies_, 0);
}

TEST_F(RunTest, ThreadsAndInstructionSetComeFromTheEnvironment) {
  setenv("PAPERLAB_NUM_THREADS", "2", 1);
  setenv("PAPERLAB_CPU", "generic", 1);
  driver = [](const Config&, Driven& run) {
    run.row("F1", [&] { run.scalar("threads", run.num_threads()); });
    run.row("F2", [&] { run.scalar("is generic", run.cpu_isa() == "generic" ? 1 : 0); });
  };
  EXPECT_EQ(call().code, 0);
  unsetenv("PAPERLAB_NUM_THREADS");
  unsetenv("PAPERLAB_CPU");
  EXPECT_EQ(result()["scalars"], (Json{{"is generic", 1}, {"threads", 2}}));
  EXPECT_EQ(result()["environment"]["threads"], 2);
  EXPECT_EQ(result()["environment"]["isa"], "generic");
}

TEST_F(RunTest, SecondRunOnTheSameFolderIsRefused) {
  const OutputDir first(scratch_ / "out", "toy-paper");
  expect_failure(1, "out/toy-paper: another run is writing here");
  EXPECT_FALSE(has_result());
}

TEST_F(RunTest, LeftoversOfAKilledRunAreRemoved) {
  scratch_.write("out/toy-paper/result.json.tmp", "{");
  call();
  EXPECT_FALSE(scratch_.has("out/toy-paper/result.json.tmp"));
}

TEST_F(RunTest, FolderThatCannotBeMadeIsOneLine) {
  scratch_.write("out", "a file");
  expect_failure(1, "out/toy-paper: Not a directory");
}

TEST_F(RunTest, NewerResultIsRefusedAndNothingIsWritten) {
  scratch_.write("out/toy-paper/result.json", R"({"schema": 99})");
  expect_failure(2, "schema 99 is newer than 1");
  EXPECT_EQ(scratch_.read("out/toy-paper/result.json"), R"({"schema": 99})");
  EXPECT_FALSE(scratch_.has("out/toy-paper/config.json"));
}

TEST_F(RunTest, HelpIsPrintedOnStdout) {
  const Outcome outcome = call({"--help"});
  EXPECT_EQ(outcome.code, 0);
  EXPECT_NE(outcome.out.find("scale=1.0"), std::string::npos);
  EXPECT_FALSE(scratch_.has("out"));
}

}  // namespace
}  // namespace paperlab::experiments
