#include <ATen/ops/empty.h>

#include "kernels/common/backend.h"
#include "kernels/depth_aggregate/cuda.h"
#include "kernels/gemm/gemm.h"
#include "paperlab/ops/depth_checks_internal.h"
#include "paperlab/ops/depth_step_internal.h"
#include "paperlab/ops/kernel_dtype_internal.h"
#include "paperlab/ops/parallel_bridge.h"

namespace paperlab::ops::depth {
namespace {

at::Tensor dense(const at::Tensor& x) { return x.defined() ? x.contiguous() : x; }

template <class Byte>
Byte* moved(Byte* data, const at::Tensor& slots, std::int64_t slot) {
  return data + slot * slots.stride(0) * static_cast<std::int64_t>(slots.element_size());
}

const void* slot_of(const at::Tensor& slots, std::int64_t slot) {
  return moved(static_cast<const char*>(slots.const_data_ptr()), slots, slot);
}

void* mutable_slot_of(const at::Tensor& slots, std::int64_t slot) {
  return moved(static_cast<char*>(slots.mutable_data_ptr()), slots, slot);
}

const void* data_of(const at::Tensor& x) { return x.defined() ? x.const_data_ptr() : nullptr; }
void* mutable_data_of(const at::Tensor& x) { return x.defined() ? x.mutable_data_ptr() : nullptr; }

// Matrices that lie as the kernel reads them: as they are, if both lie turned over, else
// contiguous.
Generated readable(const Generated& generated) {
  Generated found = generated;
  if (!lie_transposed(generated.w1, generated.w2)) {
    found.w1 = dense(generated.w1);
    found.w2 = dense(generated.w2);
  }
  return found;
}

// The kernel's problem and the pointers that it holds on to.
class Problem {
 public:
  // slots [>= i+1, B, T, D]
  Problem(const Step& step, const at::Tensor& slots, const Generated& generated) {
    for (const std::int64_t source : step.sources) {
      sources_.push_back(slot_of(slots, source));
    }
    const std::int64_t num_tokens = slots.size(1) * slots.size(2);
    const std::int64_t num_weights = step.num_ways * step.num_sources();
    const at::Tensor& weights = generated.weights;
    const bool is_static = generated.is_given() && weights.dim() == 2;
    const bool is_by_way = generated.is_given() && weights.dim() == 4;
    step_.aggregate = {kernel_dtype(slots),
                       num_tokens,
                       slots.size(3),
                       step.num_sources(),
                       step.num_ways,
                       sources_.data(),
                       weights.const_data_ptr(),
                       kernel_dtype(weights),
                       is_static   ? 0
                       : is_by_way ? step.num_sources()
                                   : num_weights,
                       is_by_way ? num_tokens * step.num_sources() : step.num_sources()};
    step_.generator.dtype = kernel_dtype(slots);
    step_.generator.num_tokens = num_tokens;
    step_.generator.width = slots.size(3);
    step_.generator.num_weights = num_weights;
    if (!generated.is_given()) {
      step_.generator.hidden_size = generated.w1.size(1);
      step_.generator.eps = step.eps;
      step_.generator.gelu = step.gelu;
      step_.generator.x = sources_.back();
      step_.generator.w1 = generated.w1.const_data_ptr();
      step_.generator.w2 = generated.w2.const_data_ptr();
      step_.generator.is_transposed = lie_transposed(generated.w1, generated.w2);
    }
  }

  kernels::DepthStep& operator*() { return step_; }
  kernels::DepthStep* operator->() { return &step_; }

 private:
  std::vector<const void*> sources_;
  kernels::DepthStep step_;
};

Generated new_generated(const Step& step, const at::Tensor& slots, const at::Tensor& w1,
                        const at::Tensor& w2, const at::Tensor& bias) {
  if (!w1.defined()) {
    return {{}, {}, bias.contiguous(), {}, {}};
  }
  const auto statistics = slots.options().dtype(statistics_of(slots));
  const std::int64_t num_tokens = slots.size(1) * slots.size(2);
  return readable({w1, w2, at::empty({num_tokens, step.num_ways * step.num_sources()}, statistics),
                   at::empty({num_tokens, w1.size(1)}, statistics),
                   at::empty({num_tokens}, statistics)});
}

// Gradients of the streams as the kernel reads them.
struct StreamGradients {
  std::vector<at::Tensor> tensors;  // contiguous; not defined: zeros
  std::vector<const void*> data;

  explicit StreamGradients(at::ArrayRef<at::Tensor> grads) {
    for (const at::Tensor& grad : grads) {
      tensors.push_back(dense(grad));
      data.push_back(data_of(tensors.back()));
    }
  }
};

// Where the gradients of the sources go: slots of `gradients`, from state `first` on; others are
// not wanted.
std::vector<void*> gradient_slots(const Step& step, const at::Tensor& gradients) {
  std::vector<void*> slots;
  slots.reserve(step.sources.size());
  for (const std::int64_t source : step.sources) {
    slots.push_back(source >= step.first ? mutable_slot_of(gradients, source - step.first)
                                         : nullptr);
  }
  return slots;
}

void forward(Route route, const kernels::DepthStep& problem,
             const kernels::ConnectionWeightsResult& result, void* const* streams,
             const at::Tensor& slots) {
  if (route == Route::kCpu) {
    kernels::depth_step(problem, result, streams, torch_executor());
  } else if constexpr (kernels::kHasCuda) {
    on_cuda(slots, kernels::depth_step_cuda_workspace(problem, result),
            [&](void* memory, const kernels::Context& context) {
              kernels::depth_step_cuda(problem, result, streams, memory, context);
            });
  }
}

// Who computes a backward pass, and where.
struct Call {
  Route route;
  const at::Tensor& slots;
};

void backward(const Call& call, const kernels::DepthAggregate& problem,
              const kernels::DepthAggregateGradients& gradients) {
  if (call.route == Route::kCpu) {
    kernels::depth_aggregate_backward(problem, gradients, torch_executor());
  } else if constexpr (kernels::kHasCuda) {
    on_cuda(call.slots, kernels::depth_aggregate_backward_cuda_workspace(problem, gradients),
            [&](void* memory, const kernels::Context& context) {
              kernels::depth_aggregate_backward_cuda(problem, gradients, memory, context);
            });
  }
}

void backward(const Call& call, const kernels::DepthStep& problem,
              const kernels::DepthStepGradients& gradients) {
  if (call.route == Route::kCpu) {
    kernels::depth_step_backward(problem, gradients, kernels::gemm, torch_executor());
  } else if constexpr (kernels::kHasCuda) {
    on_cuda(call.slots, kernels::depth_step_backward_cuda_workspace(problem, gradients),
            [&](void* memory, const kernels::Context& context) {
              kernels::depth_step_backward_cuda(problem, gradients, memory, context);
            });
  }
}

void backward_given(const Call& call, Problem& problem, kernels::DepthAggregateGradients gradients,
                    const ParameterGradients& parameters) {
  gradients.grad_weights = mutable_data_of(parameters.bias);
  backward(call, problem->aggregate, gradients);
}

void backward_generated(const Call& call, Problem& problem, const Generated& generated,
                        kernels::DepthAggregateGradients gradients,
                        const ParameterGradients& parameters) {
  const at::Tensor grad_weights = at::empty(generated.weights.sizes(), generated.weights.options());
  gradients.grad_weights = grad_weights.mutable_data_ptr();
  kernels::ConnectionWeightsGradients generator;
  generator.z = generated.z.const_data_ptr();
  generator.inverse_rms = generated.inverse_rms.const_data_ptr();
  generator.grad_w1 = mutable_data_of(parameters.w1);
  generator.grad_w2 = mutable_data_of(parameters.w2);
  generator.grad_bias = mutable_data_of(parameters.bias);
  backward(call, *problem, {gradients, generator});
}

}  // namespace

Computed compute_by_kernel(Route route, const Step& step, const at::Tensor& slots,
                           const at::Tensor& base, const at::Tensor& delta, const at::Tensor& w1,
                           const at::Tensor& w2, const at::Tensor& bias) {
  const at::Tensor newest = slots.select(0, step.slot);
  Computed computed = {{}, new_generated(step, slots, w1, w2, bias)};
  std::vector<void*> streams;
  for (std::int64_t way = 0; way < step.num_ways; ++way) {
    computed.streams.push_back(at::empty(newest.sizes(), newest.options()));
    streams.push_back(computed.streams.back().mutable_data_ptr());
  }
  if (newest.numel() == 0) {
    return computed;
  }
  const Generated& generated = computed.generated;
  const at::Tensor dense_base = base.contiguous();
  const at::Tensor dense_delta = dense(delta);
  const at::Tensor dense_bias = bias.contiguous();
  Problem problem(step, slots, generated);
  problem->generator.bias = dense_bias.const_data_ptr();
  if (delta.defined()) {
    problem->base = dense_base.const_data_ptr();
    problem->delta = dense_delta.const_data_ptr();
    problem->newest = newest.mutable_data_ptr();
  } else {
    newest.copy_(base);
  }
  void* weights = generated.is_given() ? nullptr : generated.weights.mutable_data_ptr();
  forward(route, *problem,
          {weights, mutable_data_of(generated.z), mutable_data_of(generated.inverse_rms)},
          streams.data(), slots);
  return computed;
}

void compute_backward_by_kernel(Route route, const Step& step, const at::Tensor& slots,
                                const Generated& generated, at::ArrayRef<at::Tensor> grad_streams,
                                const at::Tensor& gradients, bool adds,
                                const ParameterGradients& parameters) {
  const StreamGradients streams(grad_streams);
  const Generated dense_generated = readable(generated);
  const std::vector<void*> grad_sources = gradient_slots(step, gradients);
  Problem problem(step, slots, dense_generated);
  kernels::DepthAggregateGradients of_sum;
  of_sum.grad_out = streams.data.data();
  of_sum.grad_sources = grad_sources.data();
  of_sum.num_added = adds ? step.num_sources() : 0;
  if (generated.is_given()) {
    backward_given({route, slots}, problem, of_sum, parameters);
  } else {
    backward_generated({route, slots}, problem, dense_generated, of_sum, parameters);
  }
}

}  // namespace paperlab::ops::depth
