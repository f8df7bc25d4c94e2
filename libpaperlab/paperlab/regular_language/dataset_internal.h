#pragma once
// The training strings as affine families, the form that the fold kernel needs and from which the
// others are listed.

#include <vector>

#include "kernels/common/affine_strings.h"
#include "kernels/one_layer_loop/one_layer_loop.h"
#include "paperlab/regular_language/train.h"

namespace paperlab::regular_language {

// Longest even-pairs string that joins the loss of a chain of thought.
int regularizer_length(const TrainOptions& options);

// Groups sorted by length. Task kParity is listed too, but its groups are not foldable.
std::vector<kernels::AffineGroup> affine_groups(const TrainOptions& options);

std::vector<kernels::PackedStrings> packed_strings(const TrainOptions& options);

}  // namespace paperlab::regular_language
