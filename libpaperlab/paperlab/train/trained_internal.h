#pragma once
/// \file
/// Which parameters of a model are trained, and how they decay.

#include <string>
#include <vector>

#include "paperlab/train/fit.h"
#include "paperlab/train/model.h"

namespace paperlab::train {

/// The parameters that require gradients. Nothing is changed.
/// \throws ValueError  if the model cannot be trained with these options.
std::vector<Trained> trained_parameters(const Model& model, const FitOptions& options);

/// Those of the others.
std::vector<std::string> frozen_names(const Model& model);

}  // namespace paperlab::train
