#include <algorithm>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "experiments/common/claims.h"
#include "experiments/common/output_dir.h"
#include "experiments/common/run_state.h"
#include "experiments/common/usage.h"
#include "paperlab/core/cpu_isa.h"
#include "paperlab/core/error.h"
#include "paperlab/core/parallel.h"
#include "paperlab/core/version.h"
#include "paperlab/data/images.h"

namespace paperlab::experiments {

namespace {

using State = Run::State;

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

/// Notes the hash of what lies in `folder` (the text of tokens, pictures or a product) and, where
/// the manifest says it, the versions of what made it.
/// \throws IoError, ValueError  if it is no such folder.
void note_source(Result& result, const std::string& name, const std::string& folder) {
  const std::string path = folder + "/manifest.json";
  const Json manifest = read_json(path);
  const Json recipe = manifest.is_object() ? manifest.value("recipe", Json()) : Json();
  if (recipe.is_string()) {
    result.corpora[name] = data::ImageFolder(folder).content();
    return;
  }
  const Json hash = recipe.is_object() ? recipe.value("sha256", Json()) : Json();
  if (!hash.is_string()) {
    throw ValueError(path + ": recipe.sha256 must be a string, got " + brief(hash));
  }
  result.corpora[name] = hash.get<std::string>();
  if (const Json maker = manifest.value("made_by", Json()); maker.is_string()) {
    result.makers[name] = maker.get<std::string>();
  }
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
    note_source(state.result, corpus, folder);
  }
}

/// Prints what a run with these options would read, one a line.
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
