#include "experiments/common/config.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "experiments/common/field_json.h"
#include "experiments/common/usage.h"
#include "tests/experiments/scratch.h"

namespace paperlab::experiments {
namespace {

struct Config {
  double learning_rate = 0.1;
  int num_steps = 10;
  std::int64_t offset = 0;
  std::uint64_t seed = 0;
  bool is_centred = false;
  std::string optimizer = "gd";
  std::vector<double> scales = {1.0};
  std::vector<bool> switches;
  std::vector<std::string> names;

  void fields(auto&& visit) {
    visit("learning_rate", learning_rate);
    visit("num_steps", num_steps);
    visit("offset", offset);
    visit("seed", seed);
    visit("is_centred", is_centred);
    visit("optimizer", optimizer);
    visit("scales", scales);
    visit("switches", switches);
    visit("names", names);
  }
};

Json base_document() {
  return Json::parse(R"({
    "paper": {"name": "toy-paper", "title": "A toy"},
    "num_steps": 20, "seed": 3,
    "presets": {"smoke": {"rows": ["F1"], "num_steps": 5},
                "small": {"rows": ["F1", "F2"], "num_steps": 30, "row_seconds": {"F2": 4}}},
    "figures": [{"name": "loss", "title": "Loss"}],
    "claims": [{"id": "C1", "statement": "s", "source": "p", "published": 1, "relation": "<=",
                "bound": 2},
               {"id": "C2", "statement": "s", "source": "p", "published": null,
                "relation": "within", "bound": [1, 2]}]})");
}

class ConfigTest : public testing::Test {
 protected:
  ResolvedConfig resolve(const std::vector<std::string>& assignments = {},
                         const std::string& preset = "small") {
    scratch_.write("config.json", base_.dump());
    ConfigRequest request{"toy-paper", scratch_ / "config.json", preset, "", assignments};
    if (!override_.is_null()) {
      request.override_file = scratch_.write("override.json", override_.dump());
    }
    return resolve_config(request, fields_of(config_));
  }

  Scratch scratch_;
  Json base_ = base_document();
  Json override_;
  Config config_;
};

TEST_F(ConfigTest, LaterLayersWin) {
  EXPECT_EQ(resolve().values["learning_rate"], 0.1);  // the struct
  EXPECT_EQ(config_.seed, 3U);                        // the file
  EXPECT_EQ(config_.num_steps, 30);                   // the preset
  override_ = {{"presets", {{"small", {{"num_steps", 40}}}, {"smoke", {{"num_steps", 1}}}}}};
  resolve();
  EXPECT_EQ(config_.num_steps, 40);  // the override's preset
  override_["num_steps"] = 50;
  resolve();
  EXPECT_EQ(config_.num_steps, 50);  // the override's top level
  resolve({"num_steps=60", "num_steps=70"});
  EXPECT_EQ(config_.num_steps, 70);  // the last --set
}

TEST_F(ConfigTest, EachTypeCanBeSet) {
  resolve({"learning_rate=1e-3", "num_steps=1e6", "offset=-9223372036854775808",
           "seed=18446744073709551615", "is_centred=true", "optimizer=a=b", "scales=[1, 2.5]",
           "switches=[true,false]", "names=[\"x\"]"});
  EXPECT_EQ(config_.learning_rate, 1e-3);
  EXPECT_EQ(config_.num_steps, 1000000);
  EXPECT_EQ(config_.offset, INT64_MIN);
  EXPECT_EQ(config_.seed, UINT64_MAX);
  EXPECT_TRUE(config_.is_centred);
  EXPECT_EQ(config_.optimizer, "a=b");
  EXPECT_EQ(config_.scales, (std::vector<double>{1.0, 2.5}));
  EXPECT_EQ(config_.switches, (std::vector<bool>{true, false}));
  EXPECT_EQ(config_.names, std::vector<std::string>{"x"});
}

TEST_F(ConfigTest, WrongValueIsNamedWithWhatIsRequiredAndWhatCame) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"num_steps=abc", "--set num_steps must be an integer in -2147483648..2147483647, got \"abc"},
      {"num_steps=2147483648", "got 2147483648"},
      {"num_steps=1.5", "must be an integer"},
      {"seed=-1", "--set seed must be an integer in 0..18446744073709551615, got -1"},
      {"offset=9223372036854775808", "--set offset must be an integer"},
      {"learning_rate=nan", "--set learning_rate must be a finite number, got \"nan\""},
      {"learning_rate=1e999", "must be a finite number"},
      {"learning_rate=", "must be a finite number, got \"\""},
      {"is_centred=1", "must be true or false, got 1"},
      {"optimizer=\xff", "must be a string of UTF-8"},
      {"scales=[1, \"x\"]", "--set scales[1] must be a finite number, got \"x\""},
      {"scales=3", "must be an array, got 3"},
      {"num_steps", "--set must be key=value, got \"num_steps\""},
      {"num_step=1", "--set: unknown key \"num_step\" (did you mean \"num_steps\"?)"},
  };
  for (const auto& [assignment, part] : cases) {
    PAPERLAB_EXPECT_THROW(resolve({assignment}), UsageError, part);
  }
}

TEST_F(ConfigTest, UnknownKeysAreRefusedEverywhereWithTheNearestOne) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"/num_stps", "config.json: unknown key \"num_stps\" (did you mean \"num_steps\"?)"},
      {"/paper/titel", "paper: unknown key \"titel\" (did you mean \"title\"?)"},
      {"/presets/smal", "presets: unknown key \"smal\" (did you mean \"small\"?)"},
      {"/presets/smoke/row", "presets.smoke: unknown key \"row\" (did you mean \"rows\"?)"},
      {"/presets/small/row_seconds/F3", "row_seconds: unknown key \"F3\""},
      {"/claims/1/bund", "claims[1]: unknown key \"bund\" (did you mean \"bound\"?)"},
  };
  for (const auto& [pointer, part] : cases) {
    base_ = base_document();
    base_[Json::json_pointer(pointer)] = 1;
    PAPERLAB_EXPECT_THROW(resolve(), UsageError, part);
  }
  base_ = base_document();
  override_ = {{"num_stps", 1}};
  PAPERLAB_EXPECT_THROW(resolve(), UsageError, "override.json: unknown key \"num_stps\"");
}

TEST_F(ConfigTest, WrongValuesInTheFileAreRefusedInPresetsNotAskedForToo) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {R"([{"op": "add", "path": "/presets/smoke/num_steps", "value": "x"}])",
       "config.json: presets.smoke.num_steps must be an integer"},
      {R"([{"op": "add", "path": "/seed", "value": -1}])", "config.json: seed must be an integer"},
      {R"([{"op": "replace", "path": "/paper/name", "value": "toy"}])",
       "paper.name must be \"toy-paper\", got \"toy\""},
      {R"([{"op": "remove", "path": "/presets/small/rows"}])", "presets.small.rows must be a list"},
      {R"([{"op": "add", "path": "/presets/small/rows/0", "value": "F1"}])",
       "presets.small.rows must be different names"},
      {R"([{"op": "add", "path": "/presets/small/expected_seconds", "value": 0}])",
       "presets.small.expected_seconds must be a number > 0, got 0"},
      {R"([{"op": "replace", "path": "/claims/0/relation", "value": "=<"}])",
       "claims[0].relation must be one of < <= > >= == within outside, got \"=<\""},
      {R"([{"op": "replace", "path": "/claims/0/bound", "value": [1, 2]}])",
       "claims[0].bound must be a number"},
      {R"([{"op": "replace", "path": "/claims/1/bound", "value": [2, 1]}])",
       "claims[1].bound must be [low, high] for \"within\", got [2,1]"},
      {R"([{"op": "replace", "path": "/claims/1/id", "value": "C1"}])",
       "claims[1].id must be an id of its own"},
      {R"([{"op": "remove", "path": "/claims/0/source"}])", "claims[0].source must be a string"},
      {R"([{"op": "replace", "path": "/claims", "value": {}}])", "claims must be a list"},
      {R"([{"op": "replace", "path": "", "value": [1]}])", "must be an object, got [1]"},
  };
  for (const auto& [patch, part] : cases) {
    base_ = base_document().patch(Json::parse(patch));
    PAPERLAB_EXPECT_THROW(resolve(), UsageError, part);
  }
}

TEST_F(ConfigTest, MalformedAndMissingFilesAreUsageErrorsThatNameTheFile) {
  const std::string file = scratch_.write("bad.json", "{\n\"a\" 1}");
  PAPERLAB_EXPECT_THROW(resolve_config({"toy-paper", file, "small", "", {}}, fields_of(config_)),
                        UsageError, "bad.json: line 2: ");
  PAPERLAB_EXPECT_THROW(
      resolve_config({"toy-paper", scratch_ / "none", "small", "", {}}, fields_of(config_)),
      UsageError, "none: No such file");
  PAPERLAB_EXPECT_THROW(resolve({}, "gpu"), UsageError, "config.json has no preset \"gpu\"");
}

TEST_F(ConfigTest, OverridesMatchClaimsByIdAndFiguresByName) {
  override_ = Json::parse(R"({"claims": [{"id": "C2", "bound": [0, 9]}],
      "figures": [{"name": "loss", "title": "Other"}, {"name": "new"}]})");
  const ResolvedConfig resolved = resolve();
  EXPECT_EQ(resolved.claims()[0], base_["claims"][0]);
  EXPECT_EQ(resolved.claims()[1]["bound"], Json({0, 9}));
  EXPECT_EQ(resolved.claims()[1]["statement"], "s");
  EXPECT_EQ(resolved.document["figures"].dump(),
            R"([{"name":"loss","title":"Other"},{"name":"new"}])");
  EXPECT_EQ(resolved.changed, (std::vector<std::string>{"claims", "figures"}));
}

TEST_F(ConfigTest, OnlyAnotherValueCountsAsChanged) {
  EXPECT_TRUE(resolve().changed.empty());
  EXPECT_TRUE(resolve({"num_steps=30", "learning_rate=0.1"}).changed.empty());
  EXPECT_EQ(resolve({"num_steps=31"}).changed, std::vector<std::string>{"num_steps"});
  override_ = {{"num_steps", 31}};
  EXPECT_EQ(resolve().changed, std::vector<std::string>{"num_steps"});
}

TEST_F(ConfigTest, ResolvedDocumentCanBeRunAgainAndGivesTheSame) {
  const ResolvedConfig first = resolve({"num_steps=31"});
  EXPECT_EQ(first.rows(), (std::vector<std::string>{"F1", "F2"}));
  EXPECT_EQ(first.row_seconds("F2"), 4.0);
  EXPECT_EQ(first.row_seconds("F1"), 0.0);
  base_ = first.document;
  config_ = Config();
  EXPECT_EQ(resolve().document, first.document);
}

TEST_F(ConfigTest, FieldsAreDescribedWithinTheWidth) {
  const std::string text = describe_fields(fields_of(config_), 40);
  EXPECT_NE(text.find("learning_rate=0.1"), std::string::npos);
  EXPECT_NE(text.find("names=[]"), std::string::npos);
  std::size_t begin = 0;
  while (begin < text.size()) {
    const std::size_t end = std::min(text.find('\n', begin), text.size());
    EXPECT_LE(end - begin, 40U);
    begin = end + 1;
  }
}

TEST(SuggestionTest, OnlyNearWordsAreSuggested) {
  EXPECT_EQ(suggestion("smal", {"smoke", "small"}), " (did you mean \"small\"?)");
  EXPECT_EQ(suggestion("zebra", {"smoke", "small"}), "");
  EXPECT_EQ(suggestion("x", {"F1"}), "");
  EXPECT_EQ(suggestion(std::string(1000000, 'x'), {"small"}), "");
}

}  // namespace
}  // namespace paperlab::experiments
