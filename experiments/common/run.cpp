#include "experiments/common/run.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <limits>
#include <map>
#include <optional>
#include <set>

#include "experiments/common/claims.h"
#include "experiments/common/config.h"
#include "experiments/common/options.h"
#include "experiments/common/output_dir.h"
#include "experiments/common/progress.h"
#include "experiments/common/result.h"
#include "experiments/common/usage.h"
#include "paperlab/core/cpu_isa.h"
#include "paperlab/core/error.h"
#include "paperlab/core/json.h"
#include "paperlab/core/parallel.h"
#include "paperlab/core/version.h"
#include "paperlab/data/tokens.h"

namespace paperlab::experiments {

using Clock = std::chrono::steady_clock;

struct Run::State {
  const Clock::time_point begin = Clock::now();
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
  std::vector<std::string> needed_corpora;      ///< Of rows that are to run, each once.
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

namespace {

using State = Run::State;

/// Thrown by a part of a row that would pass the limit.
struct LimitReached : std::exception {};

Json describe_environment(const State& state) {
  const BuildInfo& build = build_info();
  const std::string torch = build.torch;
  return {{"cpu", cpu_model()},           {"isa", state.cpu_isa},
          {"threads", get_num_threads()}, {"compiler", build.compiler},
          {"version", build.version},     {"torch", torch.empty() ? Json() : Json(torch)},
          {"program", program_id()}};
}

/// Sets threads and instruction set from the environment, for the library and for the record.
void apply_environment(State& state) {
  set_num_threads(requested_num_threads());
  try {
    set_cpu_isa(requested_cpu_isa());
  } catch (const UnsupportedError& error) {
    throw UsageError(std::string("PAPERLAB_CPU: ") + error.what());
  }
  state.cpu_isa = cpu_isa_name(cpu_isa());
}

void select_rows(State& state) {
  const std::vector<std::string> rows = state.config.rows();
  for (const std::string& name : state.options.only) {
    if (std::find(rows.begin(), rows.end(), name) == rows.end()) {
      throw UsageError("--only: the preset " + state.options.preset + " has no row " + brief(name) +
                       suggestion(name, rows));
    }
  }
  state.selected = state.options.only.empty() ? rows : state.options.only;
}

void read_timed_claims(State& state, const std::string& paper) {
  const Json& claims = state.config.claims();
  if (std::any_of(claims.begin(), claims.end(),
                  [](const Json& claim) { return claim.value("timed", false); })) {
    const auto folder = std::filesystem::path(state.options.config_file).parent_path();
    state.timed = timed_measurements((folder / "../../bench/results").string(), paper);
  }
}

Json current_claims(const State& state) {
  Evidence evidence;
  evidence.preset = state.options.preset;
  evidence.preset_rows = state.config.rows();
  for (const auto& row : state.result.rows_s) {
    evidence.done_rows.insert(row.first);
  }
  evidence.left_out = state.left_out;
  evidence.changed = state.config.changed;
  evidence.measured = state.result.records.measured;
  evidence.timed = state.timed;
  return evaluate_claims(state.config.claims(), evidence);
}

void write_result(State& state) {
  Json claims = current_claims(state);
  write_json(state.result_file, to_json(state.result, claims));
  state.claims = std::move(claims);
}

std::string count_done(const State& state) {
  const auto done = std::count_if(state.selected.begin(), state.selected.end(),
                                  [&](const std::string& row) { return state.is_done(row); });
  return std::to_string(done) + " of " + std::to_string(state.selected.size()) + " rows";
}

/// Takes up an earlier result of the same run, and says so.
void resume(State& state, const std::string& result_file) {
  state.result_file = result_file;
  const std::string label = state.result.paper + ": ";
  if (!state.options.resumes) {
    return;
  }
  Start start = start_from(result_file, state.result, state.config.claims());
  state.result = std::move(start.result);
  state.claims = std::move(start.claims);
  if (!start.notice.empty()) {
    state.progress.say(label + "starts anew, not from the result that is there: " + start.notice);
  }
}

bool is_up_to_date(const State& state) {
  return std::all_of(state.selected.begin(), state.selected.end(),
                     [&](const std::string& row) { return state.is_done(row); });
}

void say_what_comes(State& state) {
  const Json& preset = state.config.preset();
  const std::string label = state.result.paper + ": ";
  if (state.options.preset == "full" && preset.contains("expected_seconds")) {
    std::string text =
        "expects about " + format_duration(preset.at("expected_seconds").get<double>());
    if (preset.contains("expected_memory_mb")) {
      text += " and " + preset.at("expected_memory_mb").dump() + " MB of memory";
    }
    state.progress.say(label + text + " in all");
  }
  std::string text = label + "preset " + state.options.preset;
  if (!state.result.rows_s.empty()) {
    text += ", goes on from " + count_done(state);
  } else {
    text += ", " + std::to_string(state.selected.size()) +
            (state.selected.size() == 1 ? " row" : " rows");
  }
  state.progress.say(text + ", " + std::to_string(get_num_threads()) + " threads, " +
                     state.cpu_isa);
}

void check_all_declared(const State& state) {
  for (const std::string& name : state.config.rows()) {
    if (state.declared.count(name) == 0) {
      throw UsageError("the configuration names the row " + brief(name) +
                       ", which the driver lacks" +
                       suggestion(name, {state.declared.begin(), state.declared.end()}));
    }
  }
}

/// The first line of `message` without control characters.
std::string one_line(std::string message) {
  message = message.substr(0, message.find('\n'));
  std::replace_if(
      message.begin(), message.end(),
      [](char c) { return std::iscntrl(static_cast<unsigned char>(c)) != 0; }, '?');
  return message;
}

/// The hash of the text whose tokens lie in `folder`.
/// \throws IoError, ValueError  if it is no folder of tokens.
std::string hash_of(const std::string& folder) {
  const data::TokenFolder tokens(folder);
  const Json hash = tokens.manifest().value(Json::json_pointer("/recipe/sha256"), Json());
  if (!hash.is_string()) {
    throw ValueError(folder + "/manifest.json: recipe.sha256 must be a string, got " + brief(hash));
  }
  return hash.get<std::string>();
}

/// Notes a corpus that the row needs; false, and the row is left out, if it is missing.
bool has_corpus(State& state, const std::string& row, const std::string& corpus) {
  if (state.is_declaring) {
    auto& needed = state.needed_corpora;
    if (state.is_selected(row) && !state.is_done(row) &&
        std::find(needed.begin(), needed.end(), corpus) == needed.end()) {
      needed.push_back(corpus);
    }
    return true;
  }
  if (!state.is_selected(row) || state.is_done(row) || state.options.corpora.count(corpus) == 1) {
    return true;
  }
  const auto& missing = state.options.missing_corpora;
  const auto found = missing.find(corpus);
  const std::string reason = found == missing.end() ? "no --corpus names it" : found->second;
  state.left_out[row] =
      "Row " + row + " needs the text " + corpus + ", which is missing: " + one_line(reason) + ".";
  state.progress.say(state.result.paper + ": " + state.left_out[row]);
  return false;
}

/// Finds what is wrong with the configuration before anything is written or run.
void check_configuration(State& state, const std::function<void()>& validate,
                         const std::function<void(Run&)>& reproduce) {
  try {
    validate();
  } catch (const ValueError& error) {
    throw UsageError(error.what());
  }
  state.is_declaring = true;
  Run run(state);
  reproduce(run);
  check_all_declared(state);
  state.declared.clear();
  state.needed_corpora.clear();
  state.is_declaring = false;
}

void print_claims(State& state) {
  const Json claims = current_claims(state);
  std::size_t width = 0;
  for (const Json& claim : claims) {
    width = std::max(width, claim.at("id").get<std::string>().size());
  }
  for (const Json& claim : claims) {
    state.progress.say(claim_line(claim, width));
  }
}

bool is_within_limit(const State& state, double expected_s) {
  const double elapsed = std::chrono::duration<double>(Clock::now() - state.begin).count();
  return state.options.limit_s == 0 || elapsed + expected_s <= state.options.limit_s;
}

void stop_at_limit(State& state, const std::string& where) {
  if (!state.hit_limit) {
    state.progress.say(state.result.paper + ": stops " + where + " to stay within " +
                       format_duration(state.options.limit_s) +
                       "; the same command goes on from here");
  }
  state.hit_limit = true;
}

/// Whether a row may start under --limit. The first one always may, so that each call gets on.
bool fits_limit(State& state, const std::string& name) {
  const bool fits = is_within_limit(state, state.config.row_seconds(name));
  if (state.hit_limit || (!fits && state.started_one)) {
    stop_at_limit(state, "before row " + name);
    return false;
  }
  state.started_one = true;
  return true;
}

/// Runs `body` with `state.row` set; what it records is in `state.staged` afterwards. False if it
/// has stopped at the limit.
bool run_body(State& state, const std::string& name, const std::function<void()>& body) {
  state.staged = {};
  state.row = name;
  state.progress.begin(name);
  try {
    body();
  } catch (const LimitReached&) {
    state.row.reset();
    state.progress.abandon();
    stop_at_limit(state, "within row " + name);
    return false;
  } catch (const std::exception& error) {
    state.row.reset();
    state.progress.abandon();
    throw Error("row " + name + ": " + error.what());
  }
  state.row.reset();
  return true;
}

void require_row(const State& state, const char* call, const std::string& name) {
  if (!state.row) {
    throw ValueError(std::string(call) + " \"" + name + "\" is recorded outside of a row");
  }
}

void configure(State& state, const char* paper, const std::vector<Field>& fields) {
  const Options& options = state.options;
  state.config = resolve_config(
      {paper, options.config_file, options.preset, options.override_file, options.assignments},
      fields);
  select_rows(state);
  apply_environment(state);
  read_timed_claims(state, paper);
  state.result.paper = paper;
  state.result.preset = options.preset;
  state.result.commit = build_info().commit;
  state.result.config = state.config.values;
  state.result.environment = describe_environment(state);
  for (const auto& [corpus, folder] : options.corpora) {
    state.result.corpora[corpus] = hash_of(folder);
  }
}

/// Prints the corpora that a run with these options would need, one a line.
int list_corpora(State& state, const std::string& paper,
                 const std::function<void(Run&)>& reproduce) {
  if (state.options.resumes) {
    const std::string file = state.options.out + "/" + paper + "/result.json";
    state.result = start_from(file, state.result, state.config.claims()).result;
  }
  state.is_declaring = true;
  Run run(state);
  reproduce(run);
  for (const std::string& corpus : state.needed_corpora) {
    std::fputs((corpus + "\n").c_str(), stdout);
  }
  return 0;
}

/// Writes the resolved configuration unless it is there already.
void keep_config(const State& state, const OutputDir& dir) {
  std::ifstream file(dir.config_file());
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  if (text != format_json(state.config.document)) {
    write_json(dir.config_file(), state.config.document);
  }
}

void run_rows(State& state, const OutputDir& dir, const std::function<void(Run&)>& reproduce) {
  dir.remove_temporaries();
  keep_config(state, dir);
  say_what_comes(state);
  Run run(state);
  reproduce(run);
}

}  // namespace

std::string Corpus::name() const {
  std::string text = recipe;
  for (const std::string& domain : domains) {
    text += (text.size() == recipe.size() ? ":" : ",") + domain;
  }
  return text;
}

void Run::row(const std::string& name, const Corpus& corpus,
              const std::function<void(const std::string& tokens_folder)>& body) {
  if (has_corpus(state_, name, corpus.name())) {
    row(name, [&] { body(state_.options.corpora.at(corpus.name())); });
  } else if (!state_.declared.insert(name).second) {
    throw ValueError("row " + name + " is declared twice");
  }
}

void Run::row(const std::string& name, const std::function<void()>& body) {
  if (state_.row) {
    throw ValueError("row " + name + " is declared within another");
  }
  if (!state_.declared.insert(name).second) {
    throw ValueError("row " + name + " is declared twice");
  }
  if (state_.is_declaring || !state_.is_selected(name) || state_.is_done(name) ||
      !fits_limit(state_, name)) {
    return;
  }
  if (!run_body(state_, name, body)) {
    return;
  }
  state_.result.records.merge(state_.staged);
  state_.result.rows_s[name] = state_.progress.end();
  write_result(state_);
}

void Run::series(const std::string& name,
                 const std::vector<std::pair<std::string, std::vector<double>>>& columns) {
  require_row(state_, "series", name);
  state_.staged.add_series(name, columns);
}

void Run::scalar(const std::string& name, double value) {
  require_row(state_, "scalar", name);
  state_.staged.add_scalar(name, value);
}

void Run::claim(const std::string& id, double measured) {
  require_row(state_, "claim", id);
  std::vector<std::string> known;
  for (const Json& claim : state_.config.claims()) {
    known.push_back(claim.at("id").get<std::string>());
    if (known.back() == id) {
      if (claim.value("timed", false)) {
        throw ValueError("claim " + id + " is timed: its value comes from bench/results");
      }
      return state_.staged.add_measured(id, measured);
    }
  }
  throw ValueError("config.json has no claim " + brief(id) + suggestion(id, known));
}

void Run::progress(std::int64_t done, std::int64_t total) { state_.progress.update(done, total); }

void Run::keep() {
  require_row(state_, "keep", "");
  state_.result.records.merge(state_.staged);
  state_.staged = {};
  write_result(state_);
}

void Run::begin_part(double expected_s) {
  require_row(state_, "begin_part", "");
  if (state_.started_part && !is_within_limit(state_, expected_s)) {
    throw LimitReached();
  }
  state_.started_part = true;
}

std::optional<double> Run::find(const std::string& scalar) const {
  for (const Json* scalars : {&state_.staged.scalars, &state_.result.records.scalars}) {
    if (scalars->contains(scalar)) {
      const Json& value = scalars->at(scalar);
      return value.is_number() ? value.get<double>() : std::numeric_limits<double>::quiet_NaN();
    }
  }
  return std::nullopt;
}

double Run::value_of(const std::string& scalar) const {
  const std::optional<double> value = find(scalar);
  if (!value || !std::isfinite(*value)) {
    throw ValueError("no row that was run has recorded a finite scalar " + brief(scalar));
  }
  return *value;
}

const std::string& Run::preset() const { return state_.options.preset; }
int Run::num_threads() const { return get_num_threads(); }
const std::string& Run::cpu_isa() const { return state_.cpu_isa; }

int run_driver(int argc, const char* const* argv, const char* paper,
               const std::vector<Field>& fields, const std::function<void()>& validate,
               const std::function<void(Run&)>& reproduce) {
  install_signal_handlers();
  State state;
  state.options = parse_options(argc, argv, paper, fields);
  if (!state.options.help.empty()) {
    std::fputs(state.options.help.c_str(), stdout);
    return 0;
  }
  configure(state, paper, fields);
  check_configuration(state, validate, reproduce);
  if (state.options.lists_corpora) {
    return list_corpora(state, paper, reproduce);
  }
  const OutputDir dir(state.options.out, paper);
  resume(state, dir.result_file());
  if (is_up_to_date(state)) {
    state.progress.say(std::string(paper) + ": preset " + state.options.preset +
                       ", up to date: " + count_done(state));
    keep_config(state, dir);
  } else {
    run_rows(state, dir, reproduce);
  }
  if (state.claims != current_claims(state)) {  // a benchmark was committed since
    write_result(state);
  }
  print_claims(state);
  return 0;
}

int report_failure() noexcept {
  int code = 1;
  std::string message = "unknown error";
  try {
    throw;
  } catch (const UsageError& error) {
    code = 2;
    message = one_line(error.what());
  } catch (const std::exception& error) {
    message = one_line(error.what());
  } catch (...) {
    code = 1;
  }
  std::fprintf(stderr, "%s\n", message.c_str());
  return code;
}

}  // namespace paperlab::experiments
