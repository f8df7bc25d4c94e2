#pragma once
// The fold on the GPU: one block a task of the CPU's partition (tile.h), the body of block.h.
// float64. The same bits from run to run; within 1e-12 of the CPU's, whose exp and order of sums
// differ.

#include <memory>

#include "kernels/common/cuda/one_layer_plan.h"
#include "kernels/one_layer_fold/one_layer_fold.h"

namespace paperlab::kernels {

class FoldPlanCuda final : public OneLayerPlanCuda {
 public:
  // Copies the groups and tasks of `plan` to the current device.
  explicit FoldPlanCuda(const FoldPlan& plan);
  ~FoldPlanCuda() override;

 private:
  void launch_tasks(Tables tables, Marginal* out, const Context& context) override;
  void launch_evaluations(Tables tables, EvaluationSum* out, const Context& context) override;

  struct Strings;
  std::unique_ptr<Strings> strings_;
};

// Writes dLoss/du and dLoss/dw, asynchronously; all pointers are of the device.
inline void one_layer_fold_cuda(FoldPlanCuda& plan, const OneLayerParameters& parameters,
                                const OneLayerGradient& gradient, const Context& context) {
  plan.gradient(parameters, gradient, context);
}

// Even pairs on all strings of 1..parameters.max_length tokens (even_pairs_group) in memory that
// the caller gives: nothing is allocated, copied or waited for, and nothing is kept between calls.
// Logits may be any distance apart. All pointers are of the device; workspace: aligned to 16 bytes,
// free again when the stream gets there. Throw ShapeError for a max_length outside
// 1..kMaxStringLength, CudaError if a launch fails.
std::int64_t even_pairs_cuda_workspace(int max_length);  // bytes
void even_pairs_cuda(const OneLayerParameters& parameters, const OneLayerGradient& gradient,
                     void* workspace, const Context& context);
void even_pairs_evaluate_cuda(const OneLayerParameters& parameters, OneLayerEvaluation* out,
                              void* workspace, const Context& context);

}  // namespace paperlab::kernels
