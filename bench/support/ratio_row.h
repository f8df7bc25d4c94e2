#pragma once
// A row of a table that compares ours with a baseline, and with a roof of the machine.

#include <string>
#include <utility>
#include <vector>

#include "bench/support/timing.h"
#include "paperlab/core/json.h"

namespace paperlab::bench {

struct RatioRow {
  std::string table;
  std::string name;
  std::string backend;  // of the baseline
  int num_threads = 1;

  double target = 1.0;        // least ratio
  double share_target = 0.0;  // least share of the roof; 0: none

  // Either floating-point operations of a step and what the machine could do in a second, or bytes.
  double flops = 0.0;
  double fma_roof_gflops = 0.0;
  double bytes = 0.0;
  double memory_roof_gb_s = 0.0;     // the best rate of the run or of the row's own probe
  std::string memory_roof = "read";  // what the probe does: "read" or "copy"

  Timing ours;
  Timing baseline;
  Timing other;               // a second baseline; not timed: 0 us
  std::string other_name;     // empty: none
  double other_target = 1.0;  // least ratio to it
  Timing read_probe;          // of the bytes alone; not timed: 0 us

  // What ours spends its time on, as shares of it; may be empty.
  std::vector<std::pair<std::string, double>> shares;

  // Further columns, by their names in JSON.
  std::vector<std::pair<std::string, double>> numbers;

  std::string wrong;  // why nothing was timed; empty: the results were right

  double ratio() const { return baseline.median_us / ours.median_us; }
  double other_ratio() const { return other.median_us / ours.median_us; }
  double share_of_roof() const;
  double spread_percent() const;
  bool is_noisy() const;
  bool is_missed() const;  // a target
};

Json json_of(const RatioRow& row);

// One line on stdout.
void print(const RatioRow& row);

}  // namespace paperlab::bench
