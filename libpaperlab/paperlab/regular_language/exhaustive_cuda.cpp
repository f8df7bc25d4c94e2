// Every string on a GPU: plain gradient descent that stays there between records.

#include <utility>

#include "kernels/common/cuda/descent.h"
#include "kernels/one_layer_fold/cuda.h"
#include "kernels/one_layer_loop/cuda.h"
#include "paperlab/regular_language/dataset_internal.h"
#include "paperlab/regular_language/dynamics_internal.h"

namespace paperlab::regular_language {
namespace {

std::unique_ptr<kernels::OneLayerPlanCuda> make_plan(const TrainOptions& options) {
  if (options.method == Method::kFold) {
    return std::make_unique<kernels::FoldPlanCuda>(kernels::FoldPlan(affine_groups(options)));
  }
  return std::make_unique<kernels::LoopPlanCuda>(kernels::LoopPlan(packed_strings(options)));
}

// Parameters in the layout of Exhaustive, which knows how they start and what they stand for.
class ExhaustiveCuda final : public Dynamics {
 public:
  ExhaustiveCuda(const TrainOptions& options, std::unique_ptr<Dynamics> host)
      : host_(std::move(host)),
        descent_(make_plan(options), options.max_length, options.attention_scale) {}

  Parameters initial() const override { return host_->initial(); }
  std::vector<double> full_u(const Parameters& at) const override { return host_->full_u(at); }
  std::vector<double> full_w(const Parameters& at) const override { return host_->full_w(at); }

  void gradient(const Parameters& at, Parameters& out) override {
    out.u.resize(at.u.size());
    out.w.resize(at.w.size());
    descent_.gradient(at.u, at.w, out.u, out.w);
  }

  Evaluation evaluate(const Parameters& at) override {
    const kernels::OneLayerEvaluation all = descent_.evaluate(at.u, at.w);
    return {all.loss, static_cast<double>(all.num_correct) / static_cast<double>(all.num_strings),
            all.min_margin};
  }

  std::int64_t descend(Parameters& at, StepSizes sizes, std::int64_t count) override {
    return descent_.descend(at.u, at.w, sizes.u, sizes.w, count);
  }

 private:
  std::unique_ptr<Dynamics> host_;
  kernels::DescentCuda descent_;
};

}  // namespace

std::unique_ptr<Dynamics> make_exhaustive_cuda(const TrainOptions& options) {
  return std::make_unique<ExhaustiveCuda>(options, make_exhaustive(options, default_executor()));
}

}  // namespace paperlab::regular_language
