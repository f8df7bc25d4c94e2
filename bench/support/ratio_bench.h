#pragma once
// What the benchmarks that compare with a baseline have in common: their command line, the machine,
// the table and its file.

#include <functional>
#include <string>
#include <vector>

#include "bench/support/ratio_row.h"
#include "paperlab/core/json.h"

namespace paperlab::bench {

struct RatioArguments {
  std::string out;
  std::string machine;
  std::string isa = "auto";
  std::string only;
  int num_repetitions = 15;
  int num_threads = 0;  // 0: rows of one and of two threads
  bool is_quick = false;

  // Whether a row is asked for; `is_small`: also with --quick.
  bool wants(const RatioRow& row, bool is_small) const;

  std::vector<int> thread_counts() const;
};

std::string threads_text(int num_threads);  // "1 thread", "2 threads"

// Prints a row, below its table's name if that is new.
void add_row(const RatioRow& row, std::vector<RatioRow>& rows);

// Measures and prints the rows; may add to `result`, where the machine is, also its "note".
using Measure = std::function<std::vector<RatioRow>(const RatioArguments& arguments, Json& result)>;

// The whole program: 0, 1 if a result is wrong or something failed, 2 on arguments that it doesn't
// know: --out FILE [--machine NAME] [--repetitions N] [--threads N] [--isa NAME] [--only TEXT]
// [--quick].
int run_ratio_bench(int argc, char** argv, const Measure& measure);

}  // namespace paperlab::bench
