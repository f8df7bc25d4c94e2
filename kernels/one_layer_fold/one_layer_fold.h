#pragma once
// Loss gradient of the one-layer transformer over exhaustive families of strings, in O(1) additions
// and one exponential per string: Z and N of a string are a row part plus a column part.
// Needs LibTorch: no. Accumulates in float64. The same bits on every instruction set, for every
// executor and from run to run.

#include <cstddef>
#include <span>
#include <vector>

#include "kernels/common/affine_strings.h"
#include "kernels/common/one_layer.h"
#include "kernels/common/one_layer_workspace.h"
#include "paperlab/core/parallel.h"

namespace paperlab::kernels {

// Everything that depends on the groups alone, and the memory of one step: made once, so that a
// step allocates nothing. Not to be shared by two steps at a time.
struct FoldPlan {
  // Throws ValueError if a group is not foldable (tile.h), has a length outside
  // 1..kMaxStringLength, or comes after a longer one.
  explicit FoldPlan(std::vector<AffineGroup> strings);

  std::size_t num_bytes() const;  // of the plan's own memory

  struct Task {
    int group;
    int index;              // within the group
    std::size_t marginals;  // place of its [2 L] results in `marginals`
  };

  std::vector<AffineGroup> groups;
  std::vector<Task> tasks;         // in order of groups
  std::vector<int> longest_first;  // order in which tasks are handed out
  std::int64_t num_strings = 0;
  std::vector<Marginal> marginals;  // of all tasks
  std::vector<OneLayerEvaluation> evaluations;
  std::vector<double> scratch;  // column tables of each worker
  OneLayerWorkspace workspace;
};

// Writes dLoss/du and dLoss/dw. The parameters' max_length must be at least the plan's.
void one_layer_fold(FoldPlan& plan, const OneLayerParameters& parameters,
                    const OneLayerGradient& gradient, const Executor& executor);

// The loss, the smallest margin and the number of correct strings.
OneLayerEvaluation one_layer_fold_evaluate(FoldPlan& plan, const OneLayerParameters& parameters,
                                           const Executor& executor);

// The definition: every string on its own (reference.cpp).
OneLayerEvaluation one_layer_fold_reference(std::span<const AffineGroup> groups,
                                            const OneLayerParameters& parameters,
                                            const OneLayerGradient& gradient);

}  // namespace paperlab::kernels
