#pragma once
/// \file
/// The activations of feed-forward parts. Their names in config.json: read_hf_activation().

#include <ATen/core/Tensor.h>

#include "paperlab/core/export.h"
#include "paperlab/nn/config.h"

namespace paperlab::nn {

/// Returns f(x), shape and dtype of x.
PAPERLAB_API at::Tensor activate(Activation activation, const at::Tensor& x);

}  // namespace paperlab::nn
