#include "experiments/common/claims.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <filesystem>

#include "paperlab/core/error.h"

namespace paperlab::experiments {
namespace {

constexpr const char* kUntested = "not tested at this scale";

struct Verdict {
  const char* verdict;
  std::string why;
};

std::string number_text(double value, int digits) {
  std::array<char, 40> text{};
  std::snprintf(text.data(), text.size(), "%.*g", digits, value);
  return text.data();
}

std::vector<double> bounds_of(const Json& bound) {
  return bound.is_array() ? bound.get<std::vector<double>>()
                          : std::vector<double>{bound.get<double>()};
}

std::string criterion_text(const Json& claim) {
  std::string text;
  for (const double bound : bounds_of(claim.at("bound"))) {
    text += (text.empty() ? "" : ", ") + number_text(bound, 15);
  }
  const bool is_interval = claim.at("bound").is_array();
  return claim.at("relation").get<std::string>() + (is_interval ? " [" + text + "]" : " " + text);
}

/// As few digits (at least 6) as keep the order of `measured` to its bounds.
std::string measured_text(const Json& measured, const Json& bound) {
  if (!measured.is_number()) {
    return "-";
  }
  const double value = measured.get<double>();
  const auto keeps_order = [value](const std::string& text, double limit) {
    const double rounded = std::strtod(text.c_str(), nullptr);
    return (rounded > limit) == (value > limit) && (rounded < limit) == (value < limit);
  };
  const std::vector<double> bounds = bounds_of(bound);
  std::string text;
  for (int digits = 6; digits <= 17; ++digits) {
    text = number_text(value, digits);
    if (std::all_of(bounds.begin(), bounds.end(),
                    [&](double limit) { return keeps_order(text, limit); })) {
      break;
    }
  }
  return text;
}

std::string joined(const std::vector<std::string>& words) {
  std::string text;
  for (const std::string& word : words) {
    text += (text.empty() ? "" : ", ") + word;
  }
  return text;
}

std::string why_unmeasured(const Json& claim, const Evidence& evidence) {
  const std::string row = claim.value("row", "");
  if (claim.value("timed", false) && row.empty()) {
    return "No committed benchmark has its value.";
  }
  if (!row.empty() && evidence.done_rows.count(row) == 0) {
    if (const auto left_out = evidence.left_out.find(row); left_out != evidence.left_out.end()) {
      return left_out->second;
    }
    const auto& rows = evidence.preset_rows;
    const bool is_in_preset = std::find(rows.begin(), rows.end(), row) != rows.end();
    return "Row " + row +
           (is_in_preset ? " has not been run."
                         : " is not part of the preset " + evidence.preset + ".");
  }
  const std::string why = claim.value("why", "");
  return why.empty() ? "No row that was run measures it." : why;
}

std::string why_it_fails(const Json& claim, double measured) {
  if (!std::isfinite(measured)) {
    return "The measured value is not a finite number.";
  }
  const std::string why = claim.value("why", "");
  return why.empty() ? "The measured value does not meet the criterion." : why;
}

Verdict judge(const Json& claim, const Evidence& evidence, const double* measured) {
  if (evidence.preset == "smoke") {
    return {kUntested, "The smoke preset checks direction and sanity only."};
  }
  if (!evidence.changed.empty()) {
    return {kUntested, "The configuration was changed: " + joined(evidence.changed) + "."};
  }
  if (measured == nullptr) {
    return {kUntested, why_unmeasured(claim, evidence)};
  }
  if (holds(*measured, claim.at("relation").get<std::string>(), claim.at("bound"))) {
    return {"holds", ""};
  }
  return {"fails", why_it_fails(claim, *measured)};
}

// A timed claim's row counts before a committed benchmark, once it has run.
bool is_measured_by_row(const Json& claim, const Evidence& evidence) {
  const std::string row = claim.value("row", "");
  return evidence.done_rows.count(row) == 1 &&
         evidence.measured.count(claim.at("id").get<std::string>()) == 1;
}

const double* find_measured(const Json& claim, const Evidence& evidence) {
  const auto id = claim.at("id").get<std::string>();
  const bool is_timed = claim.value("timed", false);
  if (!is_timed || is_measured_by_row(claim, evidence)) {
    const auto found = evidence.measured.find(id);
    return found == evidence.measured.end() ? nullptr : &found->second;
  }
  const auto found = evidence.timed.find(id);
  return found == evidence.timed.end() ? nullptr : &found->second;
}

void add_timed(const std::string& file, Measurements& measurements) {
  const Json claims = read_json(file).value("claims", Json::object());
  for (const auto& item : claims.items()) {
    if (!item.value().is_number()) {
      throw ValueError(file + ": claims." + item.key() + " must be a number, got " +
                       item.value().dump());
    }
    measurements.emplace(item.key(), item.value().get<double>());
  }
}

}  // namespace

bool holds(double measured, const std::string& relation, const Json& bound) {
  if (!std::isfinite(measured)) {
    return false;
  }
  const double low = bounds_of(bound).front();
  const double high = bounds_of(bound).back();
  if (relation == "within") return low <= measured && measured <= high;
  if (relation == "outside") return measured < low || measured > high;
  if (relation == "<") return measured < low;
  if (relation == "<=") return measured <= low;
  if (relation == ">") return measured > low;
  if (relation == ">=") return measured >= low;
  if (relation == "==") return measured == low;
  throw ValueError("claims: unknown relation \"" + relation + "\"");
}

Json evaluate_claims(const Json& definitions, const Evidence& evidence) {
  Json claims = Json::array();
  for (const Json& definition : definitions) {
    const double* measured = find_measured(definition, evidence);
    const Verdict verdict = judge(definition, evidence, measured);
    Json claim = definitions_of(Json::array({definition})).front();
    claim["measured"] = measured == nullptr ? Json() : json_number(*measured);
    claim["verdict"] = verdict.verdict;
    claim["why"] = verdict.why;
    claims.push_back(std::move(claim));
  }
  return claims;
}

Json definitions_of(const Json& claims) {
  Json definitions = Json::array();
  for (const Json& claim : claims) {
    Json definition;
    for (const char* key : {"id", "statement", "source", "published", "relation", "bound"}) {
      definition[key] = claim.value(key, Json());
    }
    definitions.push_back(std::move(definition));
  }
  return definitions;
}

Measurements timed_measurements(const std::string& bench_results, const std::string& paper) {
  std::set<std::string> files;  // in the order of the machines' names
  std::error_code error;
  for (const auto& machine : std::filesystem::directory_iterator(bench_results, error)) {
    const auto file = machine.path() / (paper + ".json");
    if (std::filesystem::exists(file, error)) {
      files.insert(file.string());
    }
  }
  Measurements measurements;
  for (const std::string& file : files) {
    add_timed(file, measurements);
  }
  return measurements;
}

std::string claim_line(const Json& claim, std::size_t id_width) {
  std::string id = claim.at("id").get<std::string>();
  std::string verdict = claim.at("verdict").get<std::string>();
  id.resize(std::max(id.size(), id_width), ' ');
  verdict.resize(std::max(verdict.size(), std::string(kUntested).size()), ' ');
  const std::string why = claim.at("why").get<std::string>();
  return id + "  " + verdict + "  measured " +
         measured_text(claim.at("measured"), claim.at("bound")) + ", required " +
         criterion_text(claim) + (why.empty() ? "" : "; " + why);
}

}  // namespace paperlab::experiments
