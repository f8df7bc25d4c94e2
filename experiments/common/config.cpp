#include "experiments/common/config.h"

#include <algorithm>
#include <cmath>
#include <set>
#include <utility>

#include "experiments/common/field_json.h"
#include "experiments/common/usage.h"

namespace paperlab::experiments {
namespace {

const std::vector<std::string> kSections = {"paper", "presets", "figures", "tables", "claims"};
const std::vector<std::string> kPresets = {"smoke", "small", "full", "gpu"};
const std::vector<std::string> kPresetKeys = {"rows", "expected_seconds", "expected_memory_mb",
                                              "row_seconds"};
const std::vector<std::string> kPaperKeys = {"name", "title", "authors", "venue", "url", "summary"};
const std::vector<std::string> kClaimKeys = {
    "id", "statement", "source", "published", "relation", "bound", "why", "timed", "row"};
const std::vector<std::string> kRelations = {"<", "<=", ">", ">=", "==", "within", "outside"};

std::vector<std::string> names_of(const std::vector<Field>& fields) {
  std::vector<std::string> names;
  names.reserve(fields.size());
  for (const Field& field : fields) {
    names.push_back(field.name);
  }
  return names;
}

bool contains(const std::vector<std::string>& words, const std::string& word) {
  return std::find(words.begin(), words.end(), word) != words.end();
}

std::vector<std::string> joined(std::vector<std::string> first,
                                const std::vector<std::string>& second) {
  first.insert(first.end(), second.begin(), second.end());
  return first;
}

void check_keys(const Json& object, const std::string& where,
                const std::vector<std::string>& known) {
  check(object.is_object(), where, "an object", object);
  for (const auto& item : object.items()) {
    if (!contains(known, item.key())) {
      throw UsageError(where + ": unknown key " + brief(item.key()) +
                       suggestion(item.key(), known));
    }
  }
}

/// Applies those keys of `object` that are fields.
void apply_fields(const Json& object, const std::string& where, const std::vector<Field>& fields,
                  Mode mode) {
  for (const Field& field : fields) {
    if (object.contains(field.name)) {
      apply(field, object.at(field.name), where + field.name, mode);
    }
  }
}

/// Reads a file of config.json's shape and checks each key and each value of a field in it.
Json read_layer(const std::string& path, const std::vector<Field>& fields) {
  Json layer;
  try {
    layer = read_json(path);
  } catch (const Error& error) {
    throw UsageError(error.what());
  }
  const std::vector<std::string> names = names_of(fields);
  check_keys(layer, path, joined(names, kSections));
  apply_fields(layer, path + ": ", fields, Mode::kCheckOnly);
  if (layer.contains("paper")) {
    check_keys(layer["paper"], path + ": paper", kPaperKeys);
  }
  if (layer.contains("presets")) {
    check_keys(layer["presets"], path + ": presets", kPresets);
    for (const auto& preset : layer["presets"].items()) {
      const std::string where = path + ": presets." + preset.key();
      check_keys(preset.value(), where, joined(names, kPresetKeys));
      apply_fields(preset.value(), where + ".", fields, Mode::kCheckOnly);
    }
  }
  return layer;
}

/// The key by which elements of two lists are matched, or "" for a list that is replaced whole.
std::string element_key(const Json& list) {
  for (const char* key : {"id", "name"}) {
    if (!list.empty() && std::all_of(list.begin(), list.end(), [key](const Json& item) {
          return item.is_object() && item.contains(key);
        })) {
      return key;
    }
  }
  return "";
}

/// Puts `from` over `into`: objects key by key, claims by id, figures by name, the rest whole.
void merge(Json& into, const Json& from) {
  if (into.is_object() && from.is_object()) {
    for (const auto& item : from.items()) {
      merge(into[item.key()], item.value());
    }
    return;
  }
  const std::string key = into.is_array() && from.is_array() ? element_key(from) : "";
  if (key.empty() || element_key(into) != key) {
    into = from;
    return;
  }
  for (const Json& item : from) {
    const auto same = std::find_if(into.begin(), into.end(), [&](const Json& candidate) {
      return candidate.at(key) == item.at(key);
    });
    if (same != into.end()) {
      merge(*same, item);
    } else {
      into.push_back(item);
    }
  }
}

/// `layer` without its fields, with `preset` as its only preset: what `merge` works on.
Json sections_of(const Json& layer, const std::string& preset, const std::vector<Field>& fields) {
  Json sections = layer;
  sections["presets"] = Json::object();
  if (layer.contains("presets") && layer["presets"].contains(preset)) {
    sections["presets"][preset] = layer["presets"][preset];
  }
  for (const Field& field : fields) {
    sections.erase(field.name);
    if (sections["presets"].contains(preset)) {
      sections["presets"][preset].erase(field.name);
    }
  }
  return sections;
}

void check_paper(const Json& document, const std::string& paper, const std::string& file) {
  const Json& section = document.at("paper");
  const Json name = section.value("name", Json());
  check(name == Json(paper), file + ": paper.name", brief(Json(paper)), name);
  for (const auto& item : section.items()) {
    check(item.value().is_string(), file + ": paper." + item.key(), "a string", item.value());
  }
}

void check_positive(const Json& value, const std::string& where) {
  check(value.is_number() && value.get<double>() > 0 && std::isfinite(value.get<double>()), where,
        "a number > 0", value);
}

void check_preset(const Json& preset, const std::string& where) {
  const Json rows = preset.value("rows", Json());
  check(rows.is_array() && !rows.empty(), where + ".rows", "a list of row names", rows);
  std::set<std::string> seen;
  for (const Json& row : rows) {
    check(row.is_string() && seen.insert(row.get<std::string>()).second, where + ".rows",
          "different names", rows);
  }
  for (const char* key : {"expected_seconds", "expected_memory_mb"}) {
    if (preset.contains(key)) {
      check_positive(preset[key], where + "." + key);
    }
  }
  const Json seconds = preset.value("row_seconds", Json::object());
  check_keys(seconds, where + ".row_seconds", rows.get<std::vector<std::string>>());
  for (const auto& item : seconds.items()) {
    check_positive(item.value(), where + ".row_seconds." + item.key());
  }
}

void check_bound(const Json& bound, const std::string& relation, const std::string& where) {
  if (relation != "within" && relation != "outside") {
    check(bound.is_number(), where, "a number", bound);
    return;
  }
  const bool is_interval = bound.is_array() && bound.size() == 2 && bound[0].is_number() &&
                           bound[1].is_number() && bound[0] <= bound[1];
  check(is_interval, where, "[low, high] for \"" + relation + "\"", bound);
}

void check_claim(const Json& claim, const std::string& where) {
  check_keys(claim, where, kClaimKeys);
  for (const char* key : {"id", "statement", "source", "relation"}) {
    const Json value = claim.value(key, Json());
    check(value.is_string() && !value.get_ref<const std::string&>().empty(), where + "." + key,
          "a string", value);
  }
  for (const char* key : {"why", "row"}) {
    check(!claim.contains(key) || claim[key].is_string(), where + "." + key, "a string",
          claim.value(key, Json()));
  }
  const Json timed = claim.value("timed", Json(false));
  check(timed.is_boolean(), where + ".timed", "true or false", timed);
  const Json published = claim.value("published", Json());
  check(published.is_number() || published.is_string() || published.is_null(), where + ".published",
        "a number, a string or null", published);
  const auto relation = claim["relation"].get<std::string>();
  check(contains(kRelations, relation), where + ".relation", "one of < <= > >= == within outside",
        relation);
  check_bound(claim.value("bound", Json()), relation, where + ".bound");
}

void check_lists(const Json& document, const std::string& file) {
  for (const char* section : {"figures", "claims"}) {
    check(document.at(section).is_array(), file + ": " + section, "a list", document.at(section));
  }
  check(document.value("tables", Json::array()).is_array(), file + ": tables", "a list",
        document.value("tables", Json()));
  std::set<std::string> ids;
  for (std::size_t i = 0; i < document["claims"].size(); ++i) {
    const Json& claim = document["claims"][i];
    const std::string where = file + ": claims[" + std::to_string(i) + "]";
    check_claim(claim, where);
    check(ids.insert(claim["id"].get<std::string>()).second, where + ".id", "an id of its own",
          claim["id"]);
  }
}

/// The whole document from the sections and the fields' present values, checked.
Json document_of(Json sections, const ConfigRequest& request, const std::string& file,
                 const std::vector<Field>& fields) {
  for (const auto& [key, empty] : {std::pair<const char*, Json>{"paper", Json::object()},
                                   {"figures", Json::array()},
                                   {"claims", Json::array()}}) {
    if (!sections.contains(key)) {
      sections[key] = empty;
    }
  }
  check_paper(sections, request.paper, file);
  check_preset(sections["presets"][request.preset], file + ": presets." + request.preset);
  check_lists(sections, file);
  sections.update(values_of(fields));
  return sections;
}

void check_has_preset(const Json& base, const ConfigRequest& request) {
  if (!base.value("presets", Json::object()).contains(request.preset)) {
    throw UsageError("--preset: " + request.file + " has no preset " + brief(request.preset));
  }
}

/// The value of `key=value` for `field`: JSON, or the bare text for a string.
Json parse_assigned(const Field& field, const std::string& text) {
  if (std::holds_alternative<std::string*>(field.target)) {
    return text;
  }
  try {
    return Json::parse(text);
  } catch (const Json::exception&) {
    return text;  // rejected by `apply`, which names what is required
  }
}

void apply_assignment(const std::string& assignment, const std::vector<Field>& fields) {
  const std::size_t equals = assignment.find('=');
  if (equals == std::string::npos || equals == 0) {
    throw UsageError("--set must be key=value, got " + brief(assignment));
  }
  const std::string key = assignment.substr(0, equals);
  const auto field = std::find_if(fields.begin(), fields.end(),
                                  [&](const Field& candidate) { return candidate.name == key; });
  if (field == fields.end()) {
    throw UsageError("--set: unknown key " + brief(key) + suggestion(key, names_of(fields)));
  }
  const Json value = parse_assigned(*field, assignment.substr(equals + 1));
  apply(*field, value, "--set " + key, Mode::kAssign);
}

/// The top-level keys of `after` whose values differ in `before`.
std::vector<std::string> differing_keys(const Json& before, const Json& after) {
  std::vector<std::string> keys;
  for (const auto& item : after.items()) {
    if (before.value(item.key(), Json()) != item.value()) {
      keys.push_back(item.key());
    }
  }
  return keys;
}

}  // namespace

std::vector<std::string> ResolvedConfig::rows() const {
  return preset().at("rows").get<std::vector<std::string>>();
}

double ResolvedConfig::row_seconds(const std::string& row) const {
  return preset().value("row_seconds", Json::object()).value(row, 0.0);
}

ResolvedConfig resolve_config(const ConfigRequest& request, const std::vector<Field>& fields) {
  const Json base = read_layer(request.file, fields);
  check_has_preset(base, request);
  Json sections = sections_of(base, request.preset, fields);
  apply_fields(base, "", fields, Mode::kAssign);
  apply_fields(base["presets"][request.preset], "", fields, Mode::kAssign);
  const Json original = document_of(sections, request, request.file, fields);

  if (!request.override_file.empty()) {
    const Json layer = read_layer(request.override_file, fields);
    merge(sections, sections_of(layer, request.preset, fields));
    const Json presets = layer.value("presets", Json::object());
    apply_fields(presets.value(request.preset, Json::object()), "", fields, Mode::kAssign);
    apply_fields(layer, "", fields, Mode::kAssign);
  }
  for (const std::string& assignment : request.assignments) {
    apply_assignment(assignment, fields);
  }
  ResolvedConfig resolved;
  const std::string& top = request.override_file.empty() ? request.file : request.override_file;
  resolved.document = document_of(sections, request, top, fields);
  resolved.values = values_of(fields);
  resolved.changed = differing_keys(original, resolved.document);
  return resolved;
}

}  // namespace paperlab::experiments
