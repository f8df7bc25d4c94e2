#pragma once
/// \file
/// Claims and verdicts: a pure function of config.json's claims and of what was measured.

#include <cstddef>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "paperlab/core/json.h"

namespace paperlab::experiments {

using Measurements = std::map<std::string, double>;  ///< Claim id to measured value.

/// What decides a verdict besides the claim itself.
struct Evidence {
  std::string preset;
  std::vector<std::string> preset_rows;         ///< Rows that this preset has.
  std::set<std::string> done_rows;              ///< Those that have run.
  std::map<std::string, std::string> left_out;  ///< Rows that could not, and why: a sentence.
  std::vector<std::string> changed;  ///< Keys changed by hand; any makes all claims untested.
  Measurements measured;             ///< From the rows.
  Measurements timed;  ///< From bench/results, for claims with `timed: true` whose row has not run.
};

/// True if `measured` stands in `relation` to `bound` (a number, or [low, high] for "within" and
/// "outside", ends included in "within"). A measured value that is not finite never does.
bool holds(double measured, const std::string& relation, const Json& bound);

/// Each of `definitions` with its measured value, verdict and why, in their order.
Json evaluate_claims(const Json& definitions, const Evidence& evidence);

/// What a result says of a claim whatever was measured: its keys without measured, verdict, why.
Json definitions_of(const Json& claims);

/// The values for timed claims in `bench_results`/<machine>/<paper>.json, key "claims"; of several
/// machines the first by name that has the claim. \throws ValueError on a malformed file.
Measurements timed_measurements(const std::string& bench_results, const std::string& paper);

/// One line for the terminal: id, verdict, measured value, criterion and, unless it holds, why.
std::string claim_line(const Json& claim, std::size_t id_width);

}  // namespace paperlab::experiments
