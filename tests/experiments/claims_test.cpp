#include "experiments/common/claims.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>

#include "paperlab/core/error.h"
#include "tests/experiments/scratch.h"

namespace paperlab::experiments {
namespace {

constexpr const char* kUntested = "not tested at this scale";

TEST(HoldsTest, EachRelationIncludesTheEndsItSays) {
  EXPECT_TRUE(holds(1, "<", 2));
  EXPECT_FALSE(holds(2, "<", 2));
  EXPECT_TRUE(holds(2, "<=", 2));
  EXPECT_TRUE(holds(3, ">", 2));
  EXPECT_FALSE(holds(2, ">", 2));
  EXPECT_TRUE(holds(2, ">=", 2));
  EXPECT_TRUE(holds(2, "==", 2));
  EXPECT_FALSE(holds(std::nextafter(2.0, 3.0), "==", 2));
  EXPECT_TRUE(holds(1, "within", {1, 2}));
  EXPECT_TRUE(holds(2, "within", {1, 2}));
  EXPECT_FALSE(holds(2.5, "within", {1, 2}));
  EXPECT_FALSE(holds(1, "outside", {1, 2}));
  EXPECT_TRUE(holds(0.5, "outside", {1, 2}));
  EXPECT_THROW(holds(1, "~", 1), ValueError);
}

TEST(HoldsTest, ValueThatIsNotFiniteNeverHolds) {
  for (const double value : {std::nan(""), std::numeric_limits<double>::infinity()}) {
    EXPECT_FALSE(holds(value, ">", 0));
    EXPECT_FALSE(holds(value, "outside", {0, 1}));
    EXPECT_FALSE(holds(-value, "<", 0));
  }
}

class ClaimsTest : public testing::Test {
 protected:
  ClaimsTest() {
    definition_ = Json::parse(R"({"id": "C1", "statement": "s", "source": "p", "published": "x",
                                  "relation": "<=", "bound": 2})");
    evidence_.preset = "small";
    evidence_.preset_rows = {"F1", "F2"};
    evidence_.done_rows = {"F1"};
  }

  Json evaluate() const { return evaluate_claims(Json::array({definition_}), evidence_).front(); }
  void expect(const std::string& verdict, const std::string& why) const {
    EXPECT_EQ(evaluate()["verdict"], verdict);
    EXPECT_EQ(evaluate()["why"], why);
  }

  Json definition_;
  Evidence evidence_;
};

TEST_F(ClaimsTest, ClaimHasExactlyTheKeysOfTheContract) {
  evidence_.measured["C1"] = 1;
  definition_["row"] = "F1";
  EXPECT_EQ(evaluate().dump(),
            R"({"bound":2,"id":"C1","measured":1,"published":"x","relation":"<=","source":"p",)"
            R"("statement":"s","verdict":"holds","why":""})");
}

TEST_F(ClaimsTest, FailedClaimSaysWhy) {
  evidence_.measured["C1"] = 3;
  expect("fails", "The measured value does not meet the criterion.");
  definition_["why"] = "The printed bound lacks a factor.";
  expect("fails", "The printed bound lacks a factor.");
  evidence_.measured["C1"] = std::nan("");
  expect("fails", "The measured value is not a finite number.");
  EXPECT_TRUE(evaluate()["measured"].is_null());
}

TEST_F(ClaimsTest, UnmeasuredClaimIsNotTestedAndSaysWhichRowIsMissing) {
  expect(kUntested, "No row that was run measures it.");
  definition_["why"] = "It needs another data set.";
  expect(kUntested, "It needs another data set.");
  definition_["row"] = "F2";
  expect(kUntested, "Row F2 has not been run.");
  definition_["row"] = "F9";
  expect(kUntested, "Row F9 is not part of the preset small.");
}

TEST_F(ClaimsTest, SmokeAndChangedSettingsTestNothing) {
  evidence_.measured["C1"] = 1;
  evidence_.changed = {"seed", "num_steps"};
  expect(kUntested, "The configuration was changed: seed, num_steps.");
  evidence_.preset = "smoke";
  expect(kUntested, "The smoke preset checks direction and sanity only.");
  EXPECT_EQ(evaluate()["measured"], 1);
}

TEST_F(ClaimsTest, TimedClaimTakesItsValueFromBenchmarksAlone) {
  definition_["timed"] = true;
  evidence_.measured["C1"] = 1;
  expect(kUntested, "No committed benchmark has its value.");
  evidence_.timed["C1"] = 1.5;
  expect("holds", "");
  EXPECT_EQ(evaluate()["measured"], 1.5);
}

TEST_F(ClaimsTest, TimedClaimWithARowTakesItsValueFromTheRowOnceItHasRun) {
  definition_["timed"] = true;
  definition_["row"] = "F9";
  expect(kUntested, "Row F9 is not part of the preset small.");
  evidence_.timed["C1"] = 1.5;
  EXPECT_EQ(evaluate()["measured"], 1.5);
  evidence_.measured["C1"] = 1;
  EXPECT_EQ(evaluate()["measured"], 1.5);
  evidence_.done_rows.insert("F9");
  EXPECT_EQ(evaluate()["measured"], 1);
}

TEST_F(ClaimsTest, LineHasIdVerdictMeasuredCriterionAndWhy) {
  evidence_.measured["C1"] = 1;
  EXPECT_EQ(claim_line(evaluate(), 3), "C1   holds                     measured 1, required <= 2");
  evidence_.measured.clear();
  EXPECT_EQ(claim_line(evaluate(), 2),
            "C1  not tested at this scale  measured -, required <= 2; No row that was run measures "
            "it.");
  definition_["relation"] = "within";
  definition_["bound"] = {0.22, 0.25};
  evidence_.measured["C1"] = 0.24;
  EXPECT_EQ(claim_line(evaluate(), 2),
            "C1  holds                     measured 0.24, required within [0.22, 0.25]");
}

TEST_F(ClaimsTest, PrintedValueKeepsItsOrderToTheBound) {
  evidence_.measured["C1"] = 2.0000000001;
  EXPECT_NE(claim_line(evaluate(), 2).find("fails"), std::string::npos);
  EXPECT_NE(claim_line(evaluate(), 2).find("measured 2.0000000001,"), std::string::npos);
}

TEST(TimedMeasurementsTest, FirstMachineByNameThatHasTheClaimCounts) {
  const Scratch scratch;
  scratch.write("results/b-machine/toy.json", R"({"claims": {"C1": 2, "C2": 3}})");
  scratch.write("results/a-machine/toy.json", R"({"claims": {"C1": 1}, "other": 0})");
  scratch.write("results/c-machine/other.json", R"({"claims": {"C3": 1}})");
  EXPECT_EQ(timed_measurements(scratch / "results", "toy"), (Measurements{{"C1", 1}, {"C2", 3}}));
  EXPECT_TRUE(timed_measurements(scratch / "none", "toy").empty());
  scratch.write("results/d-machine/toy.json", R"({"claims": {"C1": "fast"}})");
  PAPERLAB_EXPECT_THROW(timed_measurements(scratch / "results", "toy"), ValueError,
                        "toy.json: claims.C1 must be a number, got \"fast\"");
}

}  // namespace
}  // namespace paperlab::experiments
