#pragma once
// The GPU's gradient on the CPU: the same host-device functions, block by block and thread by
// thread.

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/common/cuda/one_layer_block.h"
#include "kernels/common/one_layer.h"

namespace paperlab::test {

// Where a task of a query (length, last token) leaves its marginals.
struct EmulatedTask {
  int length;
  int query;
  std::int64_t marginals;
};

// The tables of all queries up to a length.
class EmulatedTables {
 public:
  EmulatedTables(const kernels::OneLayerParameters& parameters, int max_length);
  kernels::QueryTable of(int length, int query) const;

 private:
  std::vector<double> e_;
  std::vector<double> eu_;
};

// The gradient from the tasks' marginals.
void emulate_sums(const kernels::OneLayerParameters& parameters, const EmulatedTables& tables,
                  int max_length, std::span<const EmulatedTask> tasks,
                  std::span<const kernels::Marginal> marginals,
                  const kernels::OneLayerGradient& gradient);

// The evaluation from the tasks' sums.
kernels::OneLayerEvaluation emulate_evaluation(std::span<const kernels::EvaluationSum> parts,
                                               std::int64_t num_strings);

}  // namespace paperlab::test
