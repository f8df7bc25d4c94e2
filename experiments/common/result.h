#pragma once
/// \file
/// result.json: what a run has measured so far, and how a later run goes on from it.

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "experiments/common/claims.h"
#include "paperlab/core/json.h"

namespace paperlab::experiments {

constexpr int kResultSchema = 1;

using Columns = std::vector<std::pair<std::string, std::vector<double>>>;

/// What rows have recorded: one row's, or those of all finished rows together.
struct Records {
  Json series = Json::object();   ///< name -> column -> numbers
  Json scalars = Json::object();  ///< name -> number
  Measurements measured;          ///< claim id -> number

  /// \throws ValueError  if the name is taken or the columns differ in length.
  void add_series(const std::string& name, const Columns& columns);
  void add_scalar(const std::string& name, double value);
  void add_measured(const std::string& id, double value);
  /// Adds all of `other`, or nothing if one of its names is taken.
  void merge(const Records& other);
};

struct Result {
  std::string paper;
  std::string preset;
  std::string commit;
  Json config;                                 ///< The driver's settings.
  Json environment = Json::object();           ///< Without rows_s and corpora.
  std::map<std::string, std::string> corpora;  ///< Hash of all that was given, by name.
  std::map<std::string, std::string> makers;   ///< What made it, and its version, if that counts.
  std::map<std::string, double> rows_s;        ///< Finished rows and the seconds each took.
  Records records;
};

/// The content of result.json; `claims` from `evaluate_claims`.
Json to_json(const Result& result, const Json& claims);

/// Where a run starts.
struct Start {
  Result result;       ///< `fresh`, or `fresh` with the rows that an earlier run has finished.
  Json claims;         ///< As they stand in the file that it goes on from, else null.
  std::string notice;  ///< Why there is a file but the run starts anew, else "".
};

/// Decides from the file `path` whether a run that would begin as `fresh` can go on from there:
/// same paper, preset, settings, claims, texts and commit.
/// \throws UsageError  if the file has a newer schema; IoError if it cannot be read.
Start start_from(const std::string& path, const Result& fresh, const Json& claim_definitions);

}  // namespace paperlab::experiments
