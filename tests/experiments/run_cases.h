#pragma once
/// \file
/// A driver of two rows under test, called as from the command line.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include "experiments/common/run.h"
#include "paperlab/core/json.h"
#include "tests/experiments/scratch.h"

namespace paperlab::experiments {

struct Config {
  double scale = 1.0;

  void fields(auto&& visit) { visit("scale", scale); }
};

/// What the driver under test does; run_main takes a plain function.
using Driven = Run;  // testing::Test has a member of the name
inline std::function<void(const Config&, Driven&)> driver;
inline void reproduce(const Config& config, Driven& run) { driver(config, run); }

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

}  // namespace paperlab::experiments
