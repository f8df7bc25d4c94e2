#pragma once
// Loss gradient of the one-layer transformer over any list of binary strings: O(L) per string,
// eight strings at a time. Accumulates in float64. The same bits on every instruction set, for
// every executor and from run to run.

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/common/one_layer.h"
#include "kernels/common/one_layer_workspace.h"
#include "paperlab/core/parallel.h"

namespace paperlab::kernels {

constexpr int kStringsPerBlock = 8;

// Strings of one length with one last token and one weight, eight to a block.
struct PackedStrings {
  int length = 0;
  int query = 0;  // the last token
  double weight = 0.0;
  std::int64_t num_strings = 0;
  std::vector<std::uint8_t> tokens;    // [blocks, length - 1] one bit a string
  std::vector<std::uint8_t> negative;  // [blocks] bit set: y = -1
};

// Packs `tokens` [N, length] of 0/1 with labels [N] of +-1; all rows end with the token `query`.
PackedStrings pack_strings(std::span<const std::uint8_t> tokens,
                           std::span<const std::int8_t> labels, int length, int query,
                           double weight);

// The strings and the memory of one step. Not to be shared by two steps at a time.
struct LoopPlan {
  // Throws ValueError if there is no group or a length is below 1.
  explicit LoopPlan(std::vector<PackedStrings> strings);

  struct Task {
    int group;
    std::int64_t first_block;
    std::int64_t end_block;
    std::size_t marginals;
  };

  std::vector<PackedStrings> groups;
  std::vector<Task> tasks;
  std::int64_t num_tokens = 0;
  std::vector<Marginal> marginals;
  std::vector<OneLayerEvaluation> evaluations;
  std::vector<double> scratch;  // accumulators of each worker
  OneLayerWorkspace workspace;
};

// Writes dLoss/du and dLoss/dw. The parameters' max_length must be at least the longest string's.
void one_layer_loop(LoopPlan& plan, const OneLayerParameters& parameters,
                    const OneLayerGradient& gradient, const Executor& executor);

// The loss, the smallest margin and the number of correct strings.
OneLayerEvaluation one_layer_loop_evaluate(LoopPlan& plan, const OneLayerParameters& parameters,
                                           const Executor& executor);

// The definition: every string on its own (reference.cpp).
OneLayerEvaluation one_layer_loop_reference(std::span<const PackedStrings> groups,
                                            const OneLayerParameters& parameters,
                                            const OneLayerGradient& gradient);

}  // namespace paperlab::kernels
