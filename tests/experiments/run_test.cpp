#include "experiments/common/run.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

#include "experiments/common/output_dir.h"
#include "paperlab/core/json.h"
#include "tests/experiments/scratch.h"

namespace paperlab::experiments {
namespace {

struct Config {
  double scale = 1.0;

  void fields(auto&& visit) { visit("scale", scale); }
};

/// What the driver under test does; run_main takes a plain function.
using Driven = Run;  // testing::Test has a member of the name
std::function<void(const Config&, Driven&)> driver;
void reproduce(const Config& config, Driven& run) { driver(config, run); }

struct Outcome {
  int code;
  std::string out;
  std::string err;
};

class RunTest : public testing::Test {
 protected:
  RunTest() {
    config_ = Json::parse(R"({
      "paper": {"name": "toy-paper"}, "scale": 1.0,
      "presets": {"smoke": {"rows": ["F1"]}, "small": {"rows": ["F1", "F2"]},
                  "full": {"rows": ["F1"], "expected_seconds": 125, "expected_memory_mb": 300}},
      "claims": [
        {"id": "C1", "statement": "s", "source": "p", "relation": "==", "bound": 1},
        {"id": "C2", "statement": "s", "source": "p", "relation": "==", "bound": 1, "row": "F2"},
        {"id": "C9", "statement": "s", "source": "p", "relation": ">=", "bound": 3,
         "timed": true}]})");
    driver = [this](const Config& config, Driven& run) {
      run.row("F1", [&] {
        ++num_bodies_;
        run.series("F1", {{"x", {0, 1}}, {"y", {config.scale, std::nan("")}}});
        run.scalar("F1 scale", config.scale);
        run.claim("C1", config.scale);
      });
      run.row("F2", [&] {
        ++num_bodies_;
        run.claim("C2", 2 * run.value_of("F1 scale"));
      });
    };
  }

  Outcome call(std::vector<std::string> arguments = {}) {
    const std::string file = scratch_.write("experiments/toy_paper/config.json", config_.dump());
    arguments.insert(arguments.begin(), {"toy-paper", "--config", file, "--out", scratch_ / "out"});
    std::vector<char*> argv;
    argv.reserve(arguments.size());
    for (std::string& argument : arguments) {
      argv.push_back(argument.data());
    }
    testing::internal::CaptureStdout();
    testing::internal::CaptureStderr();
    const int code =
        run_main<Config>(static_cast<int>(argv.size()), argv.data(), "toy-paper", reproduce);
    return {code, testing::internal::GetCapturedStdout(), testing::internal::GetCapturedStderr()};
  }

  /// The call fails with `code` and one line on stderr that contains `part`.
  void expect_failure(int code, const std::string& part,
                      const std::vector<std::string>& arguments = {}) {
    const Outcome outcome = call(arguments);
    EXPECT_EQ(outcome.code, code) << outcome.err;
    EXPECT_NE(outcome.err.find(part), std::string::npos) << outcome.err;
    EXPECT_EQ(std::count(outcome.err.begin(), outcome.err.end(), '\n'), 1) << outcome.err;
  }

  Json result() const { return Json::parse(scratch_.read("out/toy-paper/result.json")); }
  bool has_result() const { return scratch_.has("out/toy-paper/result.json"); }

  Scratch scratch_;
  Json config_;
  int num_bodies_ = 0;
};

TEST_F(RunTest, RunWritesResultAndConfigAndPrintsEachClaim) {
  const Outcome outcome = call();
  EXPECT_EQ(outcome.code, 0);
  EXPECT_EQ(outcome.err, "");
  EXPECT_NE(outcome.out.find("C1  holds                     measured 1, required == 1\n"),
            std::string::npos);
  EXPECT_NE(outcome.out.find("C2  fails "), std::string::npos);
  EXPECT_NE(outcome.out.find("C9  not tested at this scale  measured -, required >= 3; "),
            std::string::npos);
  EXPECT_EQ(result()["series"].dump(), R"({"F1":{"x":[0,1],"y":[1,null]}})");
  EXPECT_EQ(result()["scalars"].dump(), R"({"F1 scale":1})");
  EXPECT_EQ(result()["config"].dump(), R"({"scale":1.0})");
  EXPECT_EQ(result()["paper"], "toy-paper");
  EXPECT_EQ(result()["environment"]["rows_s"].size(), 2U);
  const Json resolved = Json::parse(scratch_.read("out/toy-paper/config.json"));
  EXPECT_EQ(resolved["presets"], (Json{{"small", config_["presets"]["small"]}}));
  EXPECT_EQ(resolved["scale"], 1.0);
}

TEST_F(RunTest, FinishedRunIsUpToDateAndChangesNoFile) {
  call();
  const std::string before = scratch_.read("out/toy-paper/result.json");
  const std::string config = scratch_.read("out/toy-paper/config.json");
  scratch_.write("out/toy-paper/config.json", "of a run that was refused");
  const Outcome again = call();
  EXPECT_EQ(again.code, 0);
  EXPECT_NE(again.out.find("up to date"), std::string::npos);
  EXPECT_NE(again.out.find("C1  holds"), std::string::npos);
  EXPECT_EQ(scratch_.read("out/toy-paper/result.json"), before);
  EXPECT_EQ(scratch_.read("out/toy-paper/config.json"), config);  // made right, never left wrong
  EXPECT_EQ(num_bodies_, 2);
}

TEST_F(RunTest, ResumeNeverRunsEverythingAgain) {
  call();
  EXPECT_EQ(call({"--resume", "never"}).code, 0);
  EXPECT_EQ(num_bodies_, 4);
}

TEST_F(RunTest, OnlySelectsRowsAndALaterCallAddsTheRest) {
  call({"--only", "F1"});
  EXPECT_EQ(num_bodies_, 1);
  EXPECT_EQ(result()["claims"][1]["why"], "Row F2 has not been run.");
  const Outcome rest = call();
  EXPECT_NE(rest.out.find("goes on from 1 of 2 rows"), std::string::npos);
  EXPECT_EQ(num_bodies_, 2);
  const Json in_two_calls = result();
  call({"--resume", "never"});
  for (const char* key : {"series", "scalars", "claims", "config"}) {
    EXPECT_EQ(result()[key], in_two_calls[key]);
  }
}

TEST_F(RunTest, ChangedSettingLeavesClaimsUntestedAndStartsAnew) {
  call();
  const Outcome changed = call({"--set", "scale=2"});
  EXPECT_NE(changed.out.find("starts anew"), std::string::npos);
  EXPECT_NE(changed.out.find("scale was 1.0 and is 2.0"), std::string::npos);
  EXPECT_EQ(result()["claims"][0]["verdict"], "not tested at this scale");
  EXPECT_EQ(result()["claims"][0]["why"], "The configuration was changed: scale.");
  EXPECT_EQ(call({"--set", "scale=1.0"}).code, 0);
  EXPECT_EQ(result()["claims"][0]["verdict"], "holds");
}

TEST_F(RunTest, OverrideFileIsApplied) {
  const std::string file = scratch_.write("override.json", R"({"scale": 3})");
  EXPECT_EQ(call({"--override", file}).code, 0);
  EXPECT_EQ(result()["scalars"]["F1 scale"], 3);
}

TEST_F(RunTest, SmokeTestsNoClaim) {
  call({"--preset", "smoke"});
  const Json claims = result()["claims"];
  for (const Json& claim : claims) {
    EXPECT_EQ(claim["verdict"], "not tested at this scale");
    EXPECT_NE(claim["why"], "");
  }
}

TEST_F(RunTest, FullPrintsItsEstimateFirst) {
  EXPECT_EQ(call({"--preset", "full"})
                .out.rfind("toy-paper: expects about 2 min 5 s and 300 MB of memory in all\n", 0),
            0U);
}

TEST_F(RunTest, TimedClaimTakesTheCommittedValueEvenLater) {
  call();
  scratch_.write("bench/results/desk/toy-paper.json", R"({"claims": {"C9": 4.5}})");
  EXPECT_NE(call().out.find("C9  holds                     measured 4.5"), std::string::npos);
  EXPECT_EQ(result()["claims"][2]["verdict"], "holds");
  EXPECT_EQ(num_bodies_, 2);
}

TEST_F(RunTest, LimitStopsBeforeARowAndTheNextCallGoesOn) {
  config_["presets"]["small"]["row_seconds"] = {{"F2", 1000}};
  const Outcome first = call({"--limit", "100"});
  EXPECT_EQ(first.code, 0);
  EXPECT_NE(first.out.find("stops before row F2 to stay within 1 min 40 s"), std::string::npos);
  EXPECT_EQ(num_bodies_, 1);
  EXPECT_EQ(call({"--limit", "100"}).code, 0);
  EXPECT_EQ(num_bodies_, 2);
  EXPECT_TRUE(result()["environment"]["rows_s"].contains("F2"));
}

TEST_F(RunTest, FailedRowLeavesNothingOfItselfAndKeepsTheOthers) {
  driver = [](const Config&, Driven& run) {
    run.row("F1", [&] { run.scalar("kept", 1); });
    run.row("F2", [&] {
      run.scalar("lost", 1);
      throw std::runtime_error("went wrong\nin detail");
    });
  };
  expect_failure(1, "row F2: went wrong");
  EXPECT_EQ(result()["scalars"], (Json{{"kept", 1}}));
  EXPECT_FALSE(result()["environment"]["rows_s"].contains("F2"));
}

TEST_F(RunTest, KeptPartsOutliveAFailureAndAreNotDoneAgain) {
  int num_parts = 0;
  bool fails = true;
  driver = [&](const Config&, Driven& run) {
    run.row("F1", [] {});
    run.row("F2", [&] {
      for (const char* part : {"a", "b"}) {
        if (!run.find(part)) {
          ++num_parts;
          run.scalar(part, std::nan(""));
          run.keep();
        }
        run.scalar(std::string(part) + " not kept", 1);
        if (fails) {
          throw std::runtime_error("went wrong");
        }
      }
      EXPECT_TRUE(std::isnan(*run.find("a")));
    });
  };
  expect_failure(1, "row F2: went wrong");
  EXPECT_EQ(result()["scalars"].dump(), R"({"a":null})");
  fails = false;
  EXPECT_EQ(call().code, 0);
  EXPECT_EQ(num_parts, 2);
  EXPECT_EQ(result()["scalars"].dump(), R"({"a":null,"a not kept":1,"b":null,"b not kept":1})");
}

TEST_F(RunTest, LimitStopsWithinARowAndTheNextCallGoesOn) {
  driver = [&](const Config&, Driven& run) {
    run.row("F1", [&] {
      for (const char* part : {"a", "b", "c"}) {
        if (!run.find(part)) {
          run.begin_part(1000);
          run.scalar(part, 1);
          run.keep();
        }
      }
    });
    run.row("F2", [] {});
  };
  const Outcome first = call({"--limit", "100"});
  EXPECT_EQ(first.code, 0);
  EXPECT_NE(first.out.find("stops within row F1 to stay within 1 min 40 s"), std::string::npos);
  EXPECT_EQ(result()["scalars"], (Json{{"a", 1}}));
  EXPECT_TRUE(result()["environment"]["rows_s"].empty());
  call({"--limit", "100"});
  call({"--limit", "100"});
  EXPECT_EQ(result()["scalars"].size(), 3U);
  EXPECT_EQ(result()["environment"]["rows_s"].size(), 2U);
}

class CorpusTest : public RunTest {
 protected:
  CorpusTest() {
    driver = [this](const Config&, Driven& run) {
      run.row("F1", [] {});
      run.row("F2", Corpus{"pages", {"en", "de"}}, [&](const std::string& folder) {
        folder_ = folder;
        run.claim("C2", 1);
      });
    };
  }

  /// "NAME=FOLDER" of tokens whose text has this hash.
  std::string tokens(const std::string& hash) const {
    const Json manifest = {{"format", 1},
                           {"vocab_size", 256},
                           {"dtype", "uint8"},
                           {"domains", {{{"name", "en"}, {"splits", Json::object()}}}},
                           {"recipe", {{"name", "pages"}, {"sha256", hash}}}};
    scratch_.write("tokens/manifest.json", manifest.dump());
    return "pages:en,de=" + (scratch_ / "tokens");
  }

  std::string folder_;
};

TEST_F(CorpusTest, ARowGetsTheFolderAndTheResultTheHash) {
  EXPECT_EQ(call({"--corpus", tokens("abc")}).code, 0);
  EXPECT_EQ(folder_, scratch_ / "tokens");
  EXPECT_EQ(result()["claims"][1]["verdict"], "holds");
  EXPECT_EQ(result()["environment"]["corpora"], (Json{{"pages:en,de", "abc"}}));
  const std::string before = scratch_.read("out/toy-paper/result.json");
  EXPECT_NE(call().out.find("up to date"), std::string::npos);  // needs no text any more
  EXPECT_EQ(scratch_.read("out/toy-paper/result.json"), before);
}

TEST_F(CorpusTest, WithoutTheTextTheRowIsLeftOutUntilItIsThere) {
  const Outcome outcome = call({"--no-corpus", "pages:en,de=en: no network"});
  EXPECT_EQ(outcome.code, 0);
  EXPECT_EQ(outcome.err, "");
  const std::string why = "Row F2 needs the text pages:en,de, which is missing: en: no network.";
  EXPECT_NE(outcome.out.find("toy-paper: " + why), std::string::npos) << outcome.out;
  EXPECT_EQ(result()["claims"][1]["verdict"], "not tested at this scale");
  EXPECT_EQ(result()["claims"][1]["why"], why);
  const std::string before = scratch_.read("out/toy-paper/result.json");
  call({"--no-corpus", "pages:en,de=en: no network"});
  EXPECT_EQ(scratch_.read("out/toy-paper/result.json"), before);
  EXPECT_NE(call().out.find("which is missing: no --corpus names it."), std::string::npos);
  EXPECT_NE(call({"--corpus", tokens("abc")}).out.find("goes on from 1 of 2 rows"),
            std::string::npos);
  EXPECT_EQ(result()["claims"][1]["verdict"], "holds");
}

TEST_F(CorpusTest, AnotherTextStartsAnew) {
  call({"--corpus", tokens("abc")});
  const Outcome other = call({"--corpus", tokens("xyz")});
  EXPECT_NE(other.out.find("the text pages:en,de was abc and is xyz"), std::string::npos);
  EXPECT_EQ(result()["environment"]["corpora"], (Json{{"pages:en,de", "xyz"}}));
}

TEST_F(CorpusTest, ListsTheTextsOfTheRowsThatAreToRun) {
  EXPECT_EQ(call({"--list-corpora"}).out, "pages:en,de\n");
  EXPECT_EQ(call({"--list-corpora", "--only", "F1"}).out, "");
  EXPECT_FALSE(scratch_.has("out"));
  call({"--corpus", tokens("abc")});
  EXPECT_EQ(call({"--list-corpora"}).out, "");
  EXPECT_EQ(call({"--list-corpora", "--resume", "never"}).out, "pages:en,de\n");
}

TEST_F(CorpusTest, AFolderWithoutTokensIsOneLine) {
  expect_failure(1, "none/manifest.json", {"--corpus", "pages:en,de=" + (scratch_ / "none")});
  scratch_.write("tokens/manifest.json", "{}");
  expect_failure(1, "tokens/manifest.json: ", {"--corpus", "pages:en,de=" + (scratch_ / "tokens")});
}

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
