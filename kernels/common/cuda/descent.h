#pragma once
// Gradient descent that stays on the GPU: a step is a CUDA graph, the host waits once per call.
// No CUDA header, so that every build can name it.

#include <cstdint>
#include <memory>
#include <span>

#include "kernels/common/cuda/one_layer_plan.h"

namespace paperlab::kernels {

// All spans are of the host: u [2 max_length], w [2 max_length, 2 max_length], layout of
// OneLayerParameters. Calls wait for their results and throw CudaError if the device fails,
// UnsupportedError as OneLayerPlanCuda::check_spread.
class DescentCuda {
 public:
  DescentCuda(std::unique_ptr<OneLayerPlanCuda> plan, int max_length, double attention_scale);
  ~DescentCuda();

  void gradient(std::span<const double> u, std::span<const double> w, std::span<double> of_u,
                std::span<double> of_w);
  OneLayerEvaluation evaluate(std::span<const double> u, std::span<const double> w);

  // `count` updates u -= u_step du, w -= w_step dw, in place. Returns the number (from 1) of the
  // first update after which u is not finite, or -1.
  std::int64_t descend(std::span<double> u, std::span<double> w, double u_step, double w_step,
                       std::int64_t count);

 private:
  struct Device;
  std::unique_ptr<Device> device_;
};

}  // namespace paperlab::kernels
