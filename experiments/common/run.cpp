#include "experiments/common/run.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <exception>
#include <filesystem>
#include <limits>

#include "experiments/common/claims.h"
#include "experiments/common/run_state.h"
#include "experiments/common/usage.h"
#include "paperlab/core/error.h"
#include "paperlab/core/parallel.h"

namespace paperlab::experiments {

namespace {

using State = Run::State;

/// Thrown by a part of a row that would pass the limit.
struct LimitReached : std::exception {};

/// Notes what the row needs; false, and the row is left out, if it is missing.
bool has_need(State& state, const std::string& row, const Need& need) {
  if (state.is_declaring) {
    auto& needed = state.needed_corpora;
    const std::string line =
        need.line(std::filesystem::path(state.options.config_file).parent_path().string());
    if (state.is_selected(row) && !state.is_done(row) &&
        std::find(needed.begin(), needed.end(), line) == needed.end()) {
      needed.push_back(line);
    }
    return true;
  }
  const std::string& name = need.name();
  if (!state.is_selected(row) || state.is_done(row) || state.options.corpora.count(name) == 1) {
    return true;
  }
  const auto& missing = state.options.missing_corpora;
  const auto found = missing.find(name);
  const std::string reason = found == missing.end() ? "no --corpus names it" : found->second;
  state.left_out[row] =
      "Row " + row + " needs " + name + ", which is missing: " + one_line(reason) + ".";
  state.progress.say(state.result.paper + ": " + state.left_out[row]);
  return false;
}

bool is_within_limit(const State& state, double expected_s) {
  const auto now = std::chrono::steady_clock::now();
  const double elapsed = std::chrono::duration<double>(now - state.begin).count();
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

}  // namespace

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

std::string Corpus::name() const {
  std::string text = recipe;
  for (const std::string& domain : domains) {
    text += (text.size() == recipe.size() ? ":" : ",") + domain;
  }
  return model.empty() ? text : text + "@" + model;
}

Corpus Corpus::of_name(std::string_view name) {
  Corpus corpus;
  const std::size_t model = name.find('@');
  if (model != std::string_view::npos) {
    corpus.model = name.substr(model + 1);
    name = name.substr(0, model);
  }
  std::size_t end = name.find(':');
  corpus.recipe = name.substr(0, end);
  while (end != std::string_view::npos) {
    name = name.substr(end + 1);
    end = name.find(',');
    corpus.domains.emplace_back(name.substr(0, end));
  }
  return corpus;
}

Need::Need(const Corpus& corpus) : name_(corpus.name()) {}

Need::Need(const Product& product)
    : name_(product.name), program_(product.program), request_(product.request) {
  const bool is_plain = std::none_of(name_.begin(), name_.end(),
                                     [](char c) { return c == '=' || (c >= 0 && c < ' '); });
  if (name_.empty() || !is_plain) {
    throw ValueError("a product needs a name without '=', got \"" + name_ + "\"");
  }
}

std::string Need::line(const std::string& folder) const {
  return program_.empty() ? name_
                          : name_ + "\t" + (std::filesystem::path(folder) / program_).string() +
                                "\t" + request_.dump();
}

void Run::row(const std::string& name, const Corpus& corpus,
              const std::function<void(const std::string& folder)>& body) {
  row(name, std::vector<Need>{corpus},
      [&](const std::vector<std::string>& folders) { body(folders.front()); });
}

void Run::row(const std::string& name, const std::vector<Need>& needs,
              const std::function<void(const std::vector<std::string>& folders)>& body) {
  bool is_whole = true;
  for (const Need& need : needs) {
    is_whole = has_need(state_, name, need) && is_whole;
  }
  if (is_whole) {
    row(name, [&] {
      std::vector<std::string> folders;
      folders.reserve(needs.size());
      for (const Need& need : needs) {
        folders.push_back(state_.options.corpora.at(need.name()));
      }
      body(folders);
    });
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
      if (claim.value("timed", false) && claim.value("row", "") != state_.row) {
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

}  // namespace paperlab::experiments
