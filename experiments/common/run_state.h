#pragma once
/// \file
/// What a run of a driver knows: shared by its face (run.cpp) and the call around it (driver.cpp).

#include <algorithm>
#include <chrono>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "experiments/common/config.h"
#include "experiments/common/options.h"
#include "experiments/common/progress.h"
#include "experiments/common/result.h"
#include "experiments/common/run.h"
#include "paperlab/core/json.h"

namespace paperlab::experiments {

struct Run::State {
  const std::chrono::steady_clock::time_point begin = std::chrono::steady_clock::now();
  Options options;
  ResolvedConfig config;
  std::vector<std::string> selected;  ///< Rows that this call is to have done.
  Measurements timed;
  std::string cpu_isa;
  Progress progress = Progress::on_stdout();

  Result result;
  std::string result_file;
  Json claims;  ///< As in result.json on disk; null before the first write of this run.

  std::optional<std::string> row;  ///< The row whose body runs.
  Records staged;                  ///< What it has recorded so far.
  std::set<std::string> declared;
  std::vector<std::string> needed_corpora;      ///< Lines of rows that are to run, each once.
  std::map<std::string, std::string> left_out;  ///< Row to why, a sentence.
  bool is_declaring = false;                    // rows say their names and are not run
  bool started_one = false;
  bool started_part = false;
  bool hit_limit = false;

  bool is_done(const std::string& name) const { return result.rows_s.count(name) == 1; }
  bool is_selected(const std::string& name) const {
    return std::find(selected.begin(), selected.end(), name) != selected.end();
  }
};

/// The claims as they stand.
Json current_claims(const Run::State& state);

/// Writes result.json.
void write_result(Run::State& state);

}  // namespace paperlab::experiments
