// A driver as small as can be, for the tests of interruptions and faults: four rows of numbers that
// depend on the settings alone, each slow enough to be killed in.
#include <chrono>
#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "experiments/common/run.h"

namespace {

struct Config {
  double scale = 1.0;
  int num_points = 50;
  int row_ms = 100;
  std::uint64_t seed = 0;
  std::string failing_row;

  void fields(auto&& visit) {
    visit("scale", scale);
    visit("num_points", num_points);
    visit("row_ms", row_ms);
    visit("seed", seed);
    visit("failing_row", failing_row);
  }
};

void wave(const Config& config, const std::string& row, int frequency,
          paperlab::experiments::Run& run) {
  std::vector<double> x;
  std::vector<double> y;
  double sum = 0;
  for (int i = 0; i < config.num_points; ++i) {
    std::this_thread::sleep_for(std::chrono::microseconds(1000 * config.row_ms) /
                                config.num_points);
    x.push_back(i);
    y.push_back(config.scale * std::sin(0.1 * frequency * i + static_cast<double>(config.seed)));
    sum += y.back();
    run.progress(i + 1, config.num_points);
  }
  run.series(row + " wave", {{"x", x}, {"y", y}});
  run.scalar(row + " sum", sum);
  if (config.failing_row == row) {
    throw std::runtime_error("fails on request\nwith a second line");
  }
}

void reproduce(const Config& config, paperlab::experiments::Run& run) {
  for (int i = 1; i <= 3; ++i) {
    const std::string row = "F" + std::to_string(i);
    run.row(row, [&] {
      wave(config, row, i, run);
      run.claim("C" + std::to_string(i), run.value_of(row + " sum"));
    });
  }
  run.row("F4", [&] {
    run.scalar("F4 total", run.value_of("F1 sum") + run.value_of("F2 sum"));
    run.scalar("F4 undefined", std::nan(""));
    run.claim("C4", std::nan(""));
  });
}

}  // namespace

int main(int argc, char** argv) {
  return paperlab::experiments::run_main<Config>(argc, argv, "fixture-driver", reproduce);
}
