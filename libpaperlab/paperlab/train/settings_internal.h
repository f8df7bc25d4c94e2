#pragma once
/// \file
/// The options of a run: checked, kept with checkpoints, compared.

#include <string>

#include "paperlab/core/json.h"
#include "paperlab/train/fit.h"
#include "paperlab/train/model.h"

namespace paperlab::train {

/// \throws ValueError  if one is not as FitOptions says, or in inference mode.
void check_options(const FitOptions& options, const FitCallbacks& callbacks);

/// What must not change between the parts of a run. The number of processes may.
Json settings_of(const FitOptions& options, const Model& model);

/// \throws ValueError  naming the first setting that a saved run had otherwise, and its path.
void check_settings(const std::string& path, const Json& saved, const Json& wanted);

/// What must be the same in all processes.
Json arguments_of(const FitOptions& options, const Model& model);

}  // namespace paperlab::train
