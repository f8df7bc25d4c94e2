#include <gtest/gtest.h>

#include <cmath>
#include <stdexcept>
#include <string>

#include "tests/experiments/run_cases.h"

namespace paperlab::experiments {
namespace {

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

}  // namespace
}  // namespace paperlab::experiments
