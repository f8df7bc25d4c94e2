#pragma once
/// \file
/// The command line and the environment of a driver.

#include <map>
#include <string>
#include <vector>

#include "experiments/common/field.h"

namespace paperlab::experiments {

struct Options {
  std::string help;  ///< Text to print in place of a run, if --help was given.
  std::string config_file;
  std::string preset = "small";
  std::string out = "results";
  std::vector<std::string> only;  ///< Rows to run; empty: all of the preset.
  std::string override_file;
  std::vector<std::string> assignments;  ///< key=value
  bool resumes = true;
  std::map<std::string, std::string> corpora;          ///< Name to the folder of its tokens.
  std::map<std::string, std::string> missing_corpora;  ///< Name to why it could not be had.
  bool lists_corpora = false;  ///< Only print the names of those that the run would need.
  double limit_s = 0;          ///< No row is started that would end later; 0: no limit.
};

/// \param fields  Listed by --help with their defaults.
/// \throws UsageError  naming the option, what is required and what came.
Options parse_options(int argc, const char* const* argv, const std::string& paper,
                      const std::vector<Field>& fields);

/// PAPERLAB_NUM_THREADS, or the number of CPUs that this process may use.
/// \throws UsageError  unless it is an integer in 1..1024.
int requested_num_threads();

/// PAPERLAB_CPU ("generic", "avx2", "avx512", "auto"), or "auto". \throws UsageError for other
/// words.
std::string requested_cpu_isa();

}  // namespace paperlab::experiments
