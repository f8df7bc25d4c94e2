#pragma once
/// \file
/// The face of the experiment harness: a driver is a Config, a function per row, and `run_main`.
///
///   struct Config {
///     double learning_rate = 0.1;
///     void fields(auto&& visit) { visit("learning_rate", learning_rate); }
///   };
///   void reproduce(const Config& config, paperlab::experiments::Run& run) {
///     run.row("F1", [&] { run.claim("C1", measure(config)); });
///   }
///   int main(int argc, char** argv) {
///     return paperlab::experiments::run_main<Config>(argc, argv, "my-paper", reproduce);
///   }

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "experiments/common/field.h"
#include "paperlab/core/json.h"

namespace paperlab::experiments {

/// What a row reads of a recipe of `./paperlab data`. Text: some domains, as bytes or as the tokens
/// of a model of `./paperlab fetch`, which then lies in the same cache: models/MODEL beside
/// tokens/RECIPE. Pictures: the recipe alone.
struct Corpus {
  std::string recipe;
  std::vector<std::string> domains;
  std::string model{};  ///< Empty: bytes.

  /// "manual-pages:en,de", "manual-pages:en@smollm2": as on the command line and in results.
  std::string name() const;
  /// The text that has this name.
  static Corpus of_name(std::string_view name);
};

/// What a program makes from a request before the run, for example the same training by another
/// library. The program is a Python file beside config.json with a function
/// `make(requests, cache, notice)`: see corpora.py.
struct Product {
  std::string name;     ///< As on the command line and in results; no '=' and no control character.
  std::string program;  ///< Name of the file.
  Json request;         ///< All that the result depends on.
};

/// What a row reads and does not make: brought before the run.
class Need {
 public:
  Need(const Corpus& corpus);    // NOLINT(google-explicit-constructor): either may be listed
  Need(const Product& product);  // NOLINT(google-explicit-constructor)

  const std::string& name() const { return name_; }
  /// A line of --list-corpora: the name, and for a product its program in `folder` and its request,
  /// after tabs.
  std::string line(const std::string& folder) const;

 private:
  std::string name_;
  std::string program_;
  Json request_;
};

/// What a driver reports to. Rows are evaluated one by one and must not depend on one another's
/// variables: a resumed run skips those that are done.
class Run {
 public:
  struct State;
  explicit Run(State& state) : state_(state) {}

  /// Runs `body`, unless the row is not asked for or already done, and writes result.json after it.
  /// What `body` records counts only once it has returned. Work outside of rows is done each time.
  void row(const std::string& name, const std::function<void()>& body);

  /// A row that reads text or pictures. `body` gets the folder of the tokens (data/tokens.h):
  /// bytes, and a 0 after each document; or that of the pictures (data/images.h). Where they are
  /// missing the row is left out and says why.
  void row(const std::string& name, const Corpus& corpus,
           const std::function<void(const std::string& folder)>& body);

  /// A row that reads several things. `body` gets their folders in the same order; the row is left
  /// out if one is missing.
  void row(const std::string& name, const std::vector<Need>& needs,
           const std::function<void(const std::vector<std::string>& folders)>& body);

  // Within a row's body:

  /// Records columns of equal length, such as {{"step", ...}, {"loss", ...}}. Not finite: null.
  /// Times belong in columns and names that end in _s, because all else is the same in each run.
  void series(const std::string& name,
              const std::vector<std::pair<std::string, std::vector<double>>>& columns);
  void scalar(const std::string& name, double value);
  /// Records the measured value of a claim of config.json. A `timed` one must name its row: its
  /// value may differ from run to run, and counts before that of bench/results.
  void claim(const std::string& id, double measured);
  /// Shows how far the row is. Cheap enough for each step of a loop.
  void progress(std::int64_t done, std::int64_t total);
  /// Writes what the row has recorded so far, which counts from now on. After an interruption the
  /// body runs from its beginning: `find` tells what it need not do again, nor record twice.
  void keep();
  /// Ends this call's work if the next part of the row, `expected_s` long, would pass --limit; the
  /// row is then unfinished. A call's first part always may begin, so that each call gets on.
  void begin_part(double expected_s);
  /// A scalar that this row or one before has recorded, NaN if it was not finite; else nothing.
  std::optional<double> find(const std::string& scalar) const;
  /// The same, finite. \throws ValueError if there is none.
  double value_of(const std::string& scalar) const;

  // Anywhere:

  const std::string& preset() const;
  int num_threads() const;             ///< In use by the library: PAPERLAB_NUM_THREADS or all CPUs.
  const std::string& cpu_isa() const;  ///< In use by the kernels: "generic", "avx2" or "avx512".

 private:
  State& state_;
};

/// `run_main` without its type: parses, validates, runs, writes and prints. `reproduce` is called
/// twice: once to learn the names of the rows, without any body, and once to run them.
int run_driver(int argc, const char* const* argv, const char* paper,
               const std::vector<Field>& fields, const std::function<void()>& validate,
               const std::function<void(Run&)>& reproduce);

/// Prints the exception being handled as one line on stderr and returns the exit code for it.
int report_failure() noexcept;

/// A driver's whole main(). A Config may have `void validate() const`, which throws ValueError.
/// Exit codes: 0 done (whatever the verdicts), 1 failed, 2 wrong command line, configuration or
/// result schema, 130 Ctrl-C.
template <class Config>
int run_main(int argc, char** argv, const char* paper,
             void (*reproduce)(const Config&, Run&)) noexcept {
  try {
    Config config;
    const auto validate = [&] {
      if constexpr (requires { config.validate(); }) {
        config.validate();
      }
    };
    return run_driver(argc, argv, paper, fields_of(config), validate,
                      [&](Run& run) { reproduce(config, run); });
  } catch (...) {
    return report_failure();
  }
}

}  // namespace paperlab::experiments
