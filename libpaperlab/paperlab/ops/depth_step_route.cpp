#include <ATen/ops/add.h>

#include "kernels/depth_aggregate/cuda.h"
#include "paperlab/ops/depth_step_internal.h"
#include "paperlab/ops/route_internal.h"
#include "paperlab/ops/tensor_checks_internal.h"

namespace paperlab::ops::depth {
namespace {

Route route_for(const Step& step, const at::Tensor& slots) {
  const bool is_plain = checks::has_memory(slots) && (slots.is_cpu() || slots.numel() > 0);
  return is_plain ? route_of("depth_step", slots, "first",
                             step.num_sources() <= kernels::kMostCudaSources)
                  : Route::kTorch;
}

}  // namespace

bool lie_transposed(const at::Tensor& w1, const at::Tensor& w2) {
  return w1.defined() && w1.t().is_contiguous() && w2.t().is_contiguous() &&
         !(w1.is_contiguous() && w2.is_contiguous());
}

void write_newest(const at::Tensor& slot, const at::Tensor& base, const at::Tensor& delta) {
  if (delta.defined()) {
    at::Tensor out = slot;
    at::add_out(out, base, delta);
  } else {
    slot.copy_(base);
  }
}

Computed compute(const Step& step, const at::Tensor& slots, const at::Tensor& base,
                 const at::Tensor& delta, const at::Tensor& w1, const at::Tensor& w2,
                 const at::Tensor& bias) {
  if (step.sources.empty()) {
    write_newest(slots.select(0, step.slot), base, delta);
    return {};
  }
  const Route route = route_for(step, slots);
  return route == Route::kTorch ? compute_torch(step, slots, base, delta, w1, w2, bias)
                                : compute_by_kernel(route, step, slots, base, delta, w1, w2, bias);
}

void compute_backward(const Step& step, const at::Tensor& slots, const Generated& generated,
                      at::ArrayRef<at::Tensor> grad_streams, const at::Tensor& gradients, bool adds,
                      const ParameterGradients& parameters) {
  const Route route = route_for(step, slots);
  if (route == Route::kTorch) {
    compute_backward_torch(step, slots, generated, grad_streams, gradients, adds, parameters);
  } else {
    compute_backward_by_kernel(route, step, slots, generated, grad_streams, gradients, adds,
                               parameters);
  }
}

}  // namespace paperlab::ops::depth
