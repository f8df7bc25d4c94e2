#pragma once
/// \file
/// Which parameters of a decoder are trained, and how they decay.

#include <string>
#include <vector>

#include "paperlab/nn/decoder.h"
#include "paperlab/train/fit.h"

namespace paperlab::train {

/// The parameters that require gradients. Nothing is changed.
/// \throws ValueError  if the decoder cannot be trained with these options.
std::vector<Trained> trained_parameters(const nn::Decoder& decoder, const FitOptions& options);

/// Those of the others.
std::vector<std::string> frozen_names(const nn::Decoder& decoder);

}  // namespace paperlab::train
