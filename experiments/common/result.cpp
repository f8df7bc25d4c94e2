#include "experiments/common/result.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <limits>

#include "experiments/common/usage.h"
#include "paperlab/core/error.h"

namespace paperlab::experiments {
namespace {

void require_new(bool is_new, const char* kind, const std::string& name) {
  if (!is_new) {
    throw ValueError(std::string(kind) + " \"" + name + "\" is recorded twice");
  }
}

/// The first key whose value differs, as "key was X and is Y", or "".
std::string difference(const Json& before, const Json& now) {
  for (const auto& item : now.items()) {
    const Json old = before.value(item.key(), Json());
    if (old != item.value()) {
      return item.key() + " was " + brief(old) + " and is " + brief(item.value());
    }
  }
  return before.size() == now.size() ? "" : "it has other settings";
}

std::map<std::string, std::string> texts_of(const Json& file, const char* key) {
  return file.at("environment")
      .value(key, Json::object())
      .get<std::map<std::string, std::string>>();
}

std::string why_not(const Json& file, const Result& fresh, const Json& claim_definitions) {
  const auto program = [](const Json& environment) {
    return environment.is_object() ? environment.value("program", "") : "";
  };
  const Json identity = {{"paper", fresh.paper},
                         {"preset", fresh.preset},
                         {"commit", fresh.commit},
                         {"program", program(fresh.environment)}};
  const Json old_identity = {{"paper", file.at("paper")},
                             {"preset", file.at("preset")},
                             {"commit", file.at("commit")},
                             {"program", program(file.at("environment"))}};
  for (const auto& [before, now] :
       {std::pair(old_identity, identity), std::pair(file.at("config"), fresh.config)}) {
    if (const std::string text = difference(before, now); !text.empty()) {
      return text;
    }
  }
  for (const auto& [corpus, before] : texts_of(file, "corpora")) {
    const auto now = fresh.corpora.find(corpus);
    if (now != fresh.corpora.end() && now->second != before) {
      return corpus + " was " + before.substr(0, 12) + " and is " + now->second.substr(0, 12);
    }
  }
  const bool same_claims = definitions_of(file.at("claims")) == definitions_of(claim_definitions);
  return same_claims ? "" : "its claims differ";
}

/// Whether a claim's value in a result is not of its rows, but of a benchmark.
bool is_of_benchmark(const std::string& id, const Json& definitions, const Result& result) {
  return std::any_of(definitions.begin(), definitions.end(), [&](const Json& claim) {
    return claim.at("id") == id && claim.value("timed", false) &&
           result.rows_s.count(claim.value("row", "")) == 0;
  });
}

/// A null stands for a value that was not finite where the verdict says that there was one.
void read_measured(const Json& claims, const Json& definitions, Result& result) {
  Measurements& measured = result.records.measured;
  for (const Json& claim : claims) {
    const auto id = claim.at("id").get<std::string>();
    if (is_of_benchmark(id, definitions, result)) {
      continue;
    }
    if (claim.at("measured").is_number()) {
      measured[id] = claim.at("measured").get<double>();
    } else if (claim.at("verdict") == "fails") {
      measured[id] = std::numeric_limits<double>::quiet_NaN();
    }
  }
}

/// `fresh` with the rows of `file`. \throws Json::exception if the file is not a result.
Result continued(const Json& file, Result fresh, const Json& claim_definitions) {
  fresh.rows_s = file.at("environment").at("rows_s").get<std::map<std::string, double>>();
  fresh.corpora.merge(texts_of(file, "corpora"));
  fresh.makers.merge(texts_of(file, "made_by"));
  fresh.records.series = file.at("series").get<Json::object_t>();
  fresh.records.scalars = file.at("scalars").get<Json::object_t>();
  read_measured(file.at("claims"), claim_definitions, fresh);
  return fresh;
}

Start start_from_content(const Json& file, const std::string& path, const Result& fresh,
                         const Json& claim_definitions) {
  const Json schema = file.value("schema", Json());
  if (schema.is_number_integer() && schema > kResultSchema) {
    throw UsageError(path + ": schema " + schema.dump() + " is newer than " +
                     std::to_string(kResultSchema) + ", the newest that this version knows");
  }
  if (schema != kResultSchema) {
    return {fresh, Json(),
            "its schema is " + brief(schema) + ", not " + std::to_string(kResultSchema)};
  }
  const std::string reason = why_not(file, fresh, claim_definitions);
  if (!reason.empty()) {
    return {fresh, Json(), reason};
  }
  return {continued(file, fresh, claim_definitions), file.at("claims"), ""};
}

}  // namespace

void Records::add_series(const std::string& name, const Columns& columns) {
  require_new(!series.contains(name), "series", name);
  Json content = Json::object();
  for (const auto& [column, values] : columns) {
    if (values.size() != columns.front().second.size()) {
      throw ValueError("series \"" + name + "\": columns must have equal lengths, got " +
                       std::to_string(columns.front().second.size()) + " and " +
                       std::to_string(values.size()));
    }
    require_new(!content.contains(column), "column", column);
    Json& numbers = content[column] = Json::array();
    for (const double value : values) {
      numbers.push_back(json_number(value));
    }
  }
  series[name] = std::move(content);
}

void Records::add_scalar(const std::string& name, double value) {
  require_new(!scalars.contains(name), "scalar", name);
  scalars[name] = json_number(value);
}

void Records::add_measured(const std::string& id, double value) {
  require_new(measured.emplace(id, value).second, "claim", id);
}

void Records::merge(const Records& other) {
  for (const auto& item : other.series.items()) {
    require_new(!series.contains(item.key()), "series", item.key());
  }
  for (const auto& item : other.scalars.items()) {
    require_new(!scalars.contains(item.key()), "scalar", item.key());
  }
  for (const auto& item : other.measured) {
    require_new(measured.count(item.first) == 0, "claim", item.first);
  }
  series.update(other.series);
  scalars.update(other.scalars);
  measured.insert(other.measured.begin(), other.measured.end());
}

Json to_json(const Result& result, const Json& claims) {
  Json environment = result.environment;
  environment["rows_s"] = result.rows_s;
  if (!result.corpora.empty()) {
    environment["corpora"] = result.corpora;
  }
  if (!result.makers.empty()) {
    environment["made_by"] = result.makers;
  }
  double seconds = 0;
  for (const auto& row : result.rows_s) {
    seconds += row.second;
  }
  return {{"schema", kResultSchema},
          {"paper", result.paper},
          {"preset", result.preset},
          {"config", result.config},
          {"commit", result.commit},
          {"environment", std::move(environment)},
          {"seconds", seconds},
          {"series", result.records.series},
          {"scalars", result.records.scalars},
          {"claims", claims}};
}

Start start_from(const std::string& path, const Result& fresh, const Json& claim_definitions) {
  if (std::error_code error; !std::filesystem::exists(path, error)) {
    return {fresh, Json(), ""};
  }
  try {
    return start_from_content(read_json(path), path, fresh, claim_definitions);
  } catch (const ValueError& error) {  // malformed
    return {fresh, Json(), error.what()};
  } catch (const Json::exception&) {  // JSON, but not a result
    return {fresh, Json(), "it is not a result"};
  }
}

}  // namespace paperlab::experiments
