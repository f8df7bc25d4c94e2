#pragma once
/// \file
/// The configuration of a run: config.json, its preset, an override file and --set, in this order.

#include <string>
#include <vector>

#include "experiments/common/field.h"
#include "paperlab/core/json.h"

namespace paperlab::experiments {

struct ConfigRequest {
  std::string paper;          ///< As on the command line; must be paper.name of the file.
  std::string file;           ///< Path of config.json.
  std::string preset;         ///< "smoke", "small", "full" or "gpu".
  std::string override_file;  ///< "" or a file of config.json's shape that goes on top.
  std::vector<std::string> assignments;  ///< "key=value" of each --set.
};

/// A configuration after every layer was applied.
struct ResolvedConfig {
  Json document;  ///< Of config.json's shape, with the requested preset alone: can be run again.
  Json values;    ///< The fields by name.
  std::vector<std::string> changed;  ///< Keys that the override file or --set gave another value.

  const Json& preset() const { return document.at("presets").front(); }
  const Json& claims() const { return document.at("claims"); }
  std::vector<std::string> rows() const;             ///< Rows of the preset, in its order.
  double row_seconds(const std::string& row) const;  ///< Expected; 0 if the preset does not say.
};

/// Applies all layers to the targets of `fields` and checks every key of every file.
/// \throws UsageError  naming the file or option, the key, what is required and what came.
ResolvedConfig resolve_config(const ConfigRequest& request, const std::vector<Field>& fields);

}  // namespace paperlab::experiments
