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

}  // namespace paperlab::kernels
