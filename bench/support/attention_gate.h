#pragma once
// The correctness gate of the attention benchmark: what is wrong is not timed.

#include <string>
#include <vector>

#include "bench/support/attention_case.h"
#include "paperlab/core/parallel.h"

namespace paperlab::bench {

enum class Pass { kForward, kBackward };

// Why the kernel is wrong on a small shape like `like`, or nothing: its error against the
// definition in float64 is above twice that of LibTorch.
std::string wrong_on_small_shape(const AttentionShape& like, Pass pass, const Executor& executor);

// Why two results of a shape are not the same, or nothing: they differ by more than rounding, in
// the largest element or in the mean square.
std::string difference(const std::vector<double>& ours, const std::vector<double>& baseline,
                       const AttentionShape& shape);

}  // namespace paperlab::bench
