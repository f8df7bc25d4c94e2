#include "experiments/common/result.h"

#include <gtest/gtest.h>

#include <cmath>
#include <string>

#include "experiments/common/usage.h"
#include "paperlab/core/error.h"
#include "tests/experiments/scratch.h"

namespace paperlab::experiments {
namespace {

TEST(RecordsTest, SeriesNeedColumnsOfEqualLengthAndNewNames) {
  Records records;
  records.add_series("loss", {{"step", {0, 1}}, {"loss", {0.5, std::nan("")}}});
  EXPECT_EQ(records.series.dump(), R"({"loss":{"loss":[0.5,null],"step":[0,1]}})");
  PAPERLAB_EXPECT_THROW(records.add_series("loss", {}), ValueError, "\"loss\" is recorded twice");
  PAPERLAB_EXPECT_THROW(records.add_series("x", {{"a", {1, 2}}, {"b", {1}}}), ValueError,
                        "series \"x\": columns must have equal lengths, got 2 and 1");
  PAPERLAB_EXPECT_THROW(records.add_series("x", {{"a", {1}}, {"a", {1}}}), ValueError,
                        "column \"a\" is recorded twice");
  EXPECT_FALSE(records.series.contains("x"));
}

TEST(RecordsTest, MergeTakesAllOrNothing) {
  Records all;
  all.add_scalar("a", 1);
  all.add_measured("C1", 1);
  Records row;
  row.add_scalar("b", 2);
  row.add_measured("C1", 2);
  PAPERLAB_EXPECT_THROW(all.merge(row), ValueError, "claim \"C1\" is recorded twice");
  EXPECT_FALSE(all.scalars.contains("b"));
  row.measured.clear();
  all.merge(row);
  EXPECT_EQ(all.scalars, (Json{{"a", 1}, {"b", 2}}));
}

class StartTest : public testing::Test {
 protected:
  StartTest() {
    definitions_ = Json::parse(R"([
        {"id": "C1", "statement": "s", "source": "p", "published": 1, "relation": "<", "bound": 2},
        {"id": "C2", "statement": "s", "source": "p", "published": 1, "relation": "<", "bound": 2},
        {"id": "C3", "statement": "s", "source": "p", "published": 1, "relation": "<", "bound": 2}])");
    fresh_.paper = "toy-paper";
    fresh_.preset = "small";
    fresh_.commit = "abc";
    fresh_.config = {{"learning_rate", 0.1}};
    done_ = fresh_;
    done_.rows_s = {{"F1", 0.25}, {"F2", 0.5}};
    done_.records.add_scalar("F1 x", 1.0 / 3.0);
    done_.records.add_series("F1", {{"y", {0.1, std::nan("")}}});
    done_.records.add_measured("C1", 0.1);
    done_.records.add_measured("C2", std::nan(""));
  }

  Json file() const {
    Evidence evidence;
    evidence.preset = "small";
    evidence.measured = done_.records.measured;
    return to_json(done_, evaluate_claims(definitions_, evidence));
  }
  Start start(const std::string& text) const {
    scratch_.write("result.json", text);
    return start_from(scratch_ / "result.json", fresh_, definitions_);
  }
  void expect_anew(const std::string& text, const std::string& notice) const {
    const Start begun = start(text);
    EXPECT_TRUE(begun.result.rows_s.empty());
    EXPECT_TRUE(begun.claims.is_null());
    EXPECT_NE(begun.notice.find(notice), std::string::npos) << begun.notice;
  }

  Scratch scratch_;
  Json definitions_;
  Result fresh_;
  Result done_;
};

TEST_F(StartTest, FileHasExactlyTheKeysOfTheContract) {
  const Json content = file();
  std::string keys;
  for (const auto& item : content.items()) {
    keys += item.key() + " ";
  }
  EXPECT_EQ(keys, "claims commit config environment paper preset scalars schema seconds series ");
  EXPECT_EQ(content["seconds"], 0.75);
  EXPECT_EQ(content["environment"]["rows_s"]["F1"], 0.25);
}

TEST_F(StartTest, WithoutAFileTheRunIsFreshAndSaysNothing) {
  const Start begun = start_from(scratch_ / "none", fresh_, definitions_);
  EXPECT_TRUE(begun.result.rows_s.empty());
  EXPECT_EQ(begun.notice, "");
}

TEST_F(StartTest, SameRunGoesOnWithTheSameContent) {
  const Start begun = start(format_json(file()));
  EXPECT_EQ(begun.notice, "");
  EXPECT_EQ(begun.result.rows_s.size(), 2U);
  EXPECT_EQ(to_json(begun.result, begun.claims), file());
}

TEST_F(StartTest, MeasuredNotFiniteIsNotTakenForUnmeasured) {
  const Start begun = start(format_json(file()));
  EXPECT_EQ(begun.result.records.measured.size(), 2U);
  EXPECT_TRUE(std::isnan(begun.result.records.measured.at("C2")));
}

TEST_F(StartTest, ValueOfABenchmarkIsNotTakenForARows) {
  const std::string text = format_json(file());
  definitions_[0]["timed"] = true;
  definitions_[0]["row"] = "F3";  // has not run
  EXPECT_EQ(start(text).result.records.measured.count("C1"), 0U);
  definitions_[0]["row"] = "F1";
  EXPECT_EQ(start(text).result.records.measured.at("C1"), 0.1);
}

TEST_F(StartTest, NewerSchemaIsRefusedAndTheFileUntouched) {
  const std::string text = R"({"schema": 2, "rows": "of another kind"})";
  PAPERLAB_EXPECT_THROW(start(text), UsageError, "result.json: schema 2 is newer than 1");
  EXPECT_EQ(scratch_.read("result.json"), text);
}

TEST_F(StartTest, AnotherRunStartsAnewAndSaysWhatDiffers) {
  Json other = file();
  other["schema"] = 0;
  expect_anew(other.dump(), "its schema is 0, not 1");
  other = file();
  other["commit"] = "xyz";
  expect_anew(other.dump(), "commit was \"xyz\" and is \"abc\"");
  other = file();
  other["preset"] = "smoke";
  expect_anew(other.dump(), "preset was \"smoke\" and is \"small\"");
  other = file();
  other["config"]["learning_rate"] = 0.2;
  expect_anew(other.dump(), "learning_rate was 0.2 and is 0.1");
  other = file();
  other["claims"][0]["bound"] = 3;
  expect_anew(other.dump(), "its claims differ");
}

TEST_F(StartTest, FileThatIsNoResultStartsAnewAndSaysSo) {
  expect_anew("{\n\"schema\": 1,", "result.json: line 2: ");
  expect_anew("", "result.json: line 1: ");
  expect_anew("[1]", "it is not a result");
  expect_anew("{\"schema\": 1}", "it is not a result");
  Json other = file();
  other["environment"]["rows_s"] = 3;
  expect_anew(other.dump(), "it is not a result");
  other = file();
  other["claims"] = 3;
  expect_anew(other.dump(), "");
}

}  // namespace
}  // namespace paperlab::experiments
