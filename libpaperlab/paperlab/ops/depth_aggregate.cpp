#include "paperlab/ops/depth_aggregate.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <array>
#include <tuple>
#include <vector>

#include "kernels/common/backend.h"
#include "kernels/depth_aggregate/cuda.h"
#include "kernels/depth_aggregate/depth_aggregate.h"
#include "paperlab/ops/depth_aggregate_internal.h"
#include "paperlab/ops/depth_checks_internal.h"
#include "paperlab/ops/depth_torch_internal.h"
#include "paperlab/ops/dispatch_rules_internal.h"
#include "paperlab/ops/kernel_dtype_internal.h"
#include "paperlab/ops/parallel_bridge.h"
#include "paperlab/ops/route_internal.h"

namespace paperlab::ops {
namespace depth {
namespace {

// `weights` are contiguous; all else is of the dtype of `like`, of width D.
kernels::DepthAggregate problem_of(const std::vector<const void*>& sources,
                                   const at::Tensor& weights, const at::Tensor& like) {
  const std::int64_t num_tokens = weights.size(1) * weights.size(2);
  const std::int64_t num_sources = weights.size(3);
  return {kernel_dtype(like),
          num_tokens,
          like.size(3),
          num_sources,
          weights.size(0),
          sources.data(),
          weights.const_data_ptr(),
          kernel_dtype(weights),
          num_sources,
          num_tokens * num_sources};
}

void run_backward(Route route, const kernels::DepthAggregate& problem,
                  const kernels::DepthAggregateGradients& gradients, const at::Tensor& like) {
  if (route == Route::kCpu) {
    kernels::depth_aggregate_backward(problem, gradients, torch_executor());
  } else if constexpr (kernels::kHasCuda) {
    on_cuda(like, kernels::depth_aggregate_backward_cuda_workspace(problem, gradients),
            [&](void* memory, const kernels::Context& context) {
              kernels::depth_aggregate_backward_cuda(problem, gradients, memory, context);
            });
  }
}

}  // namespace

void check_weights(const char* function, const at::Tensor& weights, const c10::SymInt& batch,
                   const c10::SymInt& length, const c10::SymInt& num_sources) {
  TORCH_CHECK_VALUE(weights.dim() == 4 && weights.sym_size(0) >= 1 &&
                        weights.sym_size(1) == batch && weights.sym_size(2) == length &&
                        weights.sym_size(3) == num_sources,
                    function, ": weights must be [C, ", batch, ", ", length, ", ", num_sources,
                    "] with C >= 1, got ", weights.sym_sizes());
}

at::Tensor tokens_of(const at::Tensor& x) { return x.flatten(1, 2); }

at::Tensor sum_torch(const at::Tensor& states, const at::Tensor& weights) {
  const at::Tensor sums = sums_torch(tokens_of(states), tokens_of(weights));
  return sums.view({weights.size(0), states.size(1), states.size(2), states.size(3)});
}

Route route_of_sum(const at::Tensor& x, std::int64_t num_sources) {
  const bool is_plain = x.is_cpu() || x.numel() > 0;
  return is_plain
             ? route_of("depth_aggregate", x, "states", num_sources <= kernels::kMostCudaSources)
             : Route::kTorch;
}

at::Tensor readable(const at::Tensor& x) {
  return x.select(0, 0).is_contiguous() ? x : x.contiguous();
}

std::vector<const void*> parts_of(const at::Tensor& x) {
  const auto* bytes = static_cast<const char*>(x.const_data_ptr());
  std::vector<const void*> parts;
  parts.reserve(static_cast<std::size_t>(x.size(0)));
  for (std::int64_t i = 0; i < x.size(0); ++i) {
    parts.push_back(bytes + i * x.stride(0) * static_cast<std::int64_t>(x.element_size()));
  }
  return parts;
}

std::vector<void*> mutable_parts_of(const at::Tensor& x) {
  auto* bytes = static_cast<char*>(x.mutable_data_ptr());
  std::vector<void*> parts;
  parts.reserve(static_cast<std::size_t>(x.size(0)));
  for (std::int64_t i = 0; i < x.size(0); ++i) {
    parts.push_back(bytes + i * x.stride(0) * static_cast<std::int64_t>(x.element_size()));
  }
  return parts;
}

void sum_by_kernel(Route route, const std::vector<const void*>& sources, const at::Tensor& weights,
                   const at::Tensor& out) {
  const at::Tensor dense_weights = weights.contiguous();
  const kernels::DepthAggregate problem = problem_of(sources, dense_weights, out);
  const std::vector<void*> streams = mutable_parts_of(out);
  if (route == Route::kCpu) {
    kernels::depth_aggregate(problem, streams.data(), torch_executor());
  } else if constexpr (kernels::kHasCuda) {
    on_cuda(out, 0, [&](void*, const kernels::Context& context) {
      kernels::depth_aggregate_cuda(problem, streams.data(), context);
    });
  }
}

void gradients_by_kernel(Route route, const at::Tensor& grad_out,
                         const std::vector<const void*>& sources, const at::Tensor& weights,
                         const std::vector<void*>& grad_sources, at::Tensor* grad_weights) {
  const at::Tensor dense_weights = weights.contiguous();
  const at::Tensor dense_grad = readable(grad_out);
  at::Tensor sums;  // of float32 and bfloat16 weights: float32
  if (grad_weights != nullptr) {
    sums = at::empty(weights.sizes(), weights.options().dtype(statistics_of(weights)));
  }
  const std::vector<const void*> streams = parts_of(dense_grad);
  run_backward(route, problem_of(sources, dense_weights, dense_grad),
               {streams.data(), grad_sources.data(), 0,
                grad_weights != nullptr ? sums.mutable_data_ptr() : nullptr},
               dense_grad);
  if (grad_weights != nullptr) {
    *grad_weights = sums.to(weights.scalar_type());
  }
}

}  // namespace depth

namespace {

using Gradients = std::tuple<at::Tensor, at::Tensor>;
using Wanted = std::array<bool, 2>;  // gradients of states, weights

constexpr char kForward[] = "depth_aggregate";
constexpr char kBackward[] = "depth_aggregate_backward";

void check_arguments(const char* function, const at::Tensor& states, const at::Tensor& weights) {
  depth::check_floating(function, "states", states);
  TORCH_CHECK_VALUE(states.dim() == 4 && states.sym_size(0) >= 1 && states.sym_size(3) >= 1,
                    function, ": states must be [J, B, T, D] with J, D >= 1, got ",
                    states.sym_sizes());
  depth::check_like(function, "weights", weights, "states", states);
  const auto sizes = states.sym_sizes();
  depth::check_weights(function, weights, sizes[1], sizes[2], sizes[0]);
}

void check_backward(const at::Tensor& grad_out, const at::Tensor& states,
                    const at::Tensor& weights) {
  check_arguments(kBackward, states, weights);
  depth::check_like(kBackward, "grad_out", grad_out, "states", states);
  depth::check_sizes(
      kBackward, "grad_out", grad_out,
      {weights.sym_size(0), states.sym_size(1), states.sym_size(2), states.sym_size(3)});
}

at::Tensor new_result(const at::Tensor& states, const at::Tensor& weights) {
  return at::empty_symint(
      {weights.sym_size(0), states.sym_size(1), states.sym_size(2), states.sym_size(3)},
      states.options());
}

// What is not wanted is empty.
Gradients new_gradients(const at::Tensor& states, const at::Tensor& weights, const Wanted& wanted) {
  const auto make = [&states](bool is_wanted, c10::SymIntArrayRef sizes) {
    return is_wanted ? at::empty_symint(sizes, states.options()) : at::empty({0}, states.options());
  };
  return {make(wanted[0], states.sym_sizes()), make(wanted[1], weights.sym_sizes())};
}

void backward_torch(const at::Tensor& grad_out, const at::Tensor& states, const at::Tensor& weights,
                    const Wanted& wanted, const Gradients& gradients) {
  const at::Tensor grad = depth::tokens_of(grad_out);
  const auto& [grad_states, grad_weights] = gradients;
  if (wanted[0]) {
    const at::Tensor to = depth::tokens_of(grad_states);
    depth::state_gradients_torch(grad, depth::tokens_of(weights), states.size(0),
                                 [&to](std::int64_t first, const at::Tensor& part) {
                                   to.narrow(1, first, part.size(1)).copy_(part);
                                 });
  }
  if (wanted[1]) {
    grad_weights.copy_(
        depth::weight_gradients_torch(grad, depth::tokens_of(states)).view(weights.sizes()));
  }
}

Route route_for(const at::Tensor& states) { return depth::route_of_sum(states, states.size(0)); }

at::Tensor forward_any(const at::Tensor& states, const at::Tensor& weights) {
  check_arguments(kForward, states, weights);
  const Route route = route_for(states);
  if (route == Route::kTorch) {
    return depth::sum_torch(states, weights);
  }
  const at::Tensor out = new_result(states, weights);
  if (out.numel() > 0) {
    const at::Tensor dense = depth::readable(states);
    depth::sum_by_kernel(route, depth::parts_of(dense), weights, out);
  }
  return out;
}

Gradients backward_any(const at::Tensor& grad_out, const at::Tensor& states,
                       const at::Tensor& weights, Wanted wanted) {
  check_backward(grad_out, states, weights);
  Gradients gradients = new_gradients(states, weights, wanted);
  auto& [grad_states, grad_weights] = gradients;
  const Route route = route_for(states);
  if (route == Route::kTorch) {
    backward_torch(grad_out, states, weights, wanted, gradients);
  } else if (grad_out.numel() > 0) {
    const at::Tensor dense = depth::readable(states);
    const std::vector<const void*> sources = depth::parts_of(dense);
    const std::vector<void*> grad_sources =
        wanted[0] ? depth::mutable_parts_of(grad_states) : std::vector<void*>(sources.size());
    depth::gradients_by_kernel(route, grad_out, sources, weights, grad_sources,
                               wanted[1] ? &grad_weights : nullptr);
  }
  return gradients;
}

at::Tensor forward_meta(const at::Tensor& states, const at::Tensor& weights) {
  check_arguments(kForward, states, weights);
  return new_result(states, weights);
}

Gradients backward_meta(const at::Tensor& grad_out, const at::Tensor& states,
                        const at::Tensor& weights, Wanted wanted) {
  check_backward(grad_out, states, weights);
  return new_gradients(states, weights, wanted);
}

at::Tensor call_forward(const at::Tensor& states, const at::Tensor& weights) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("paperlab::depth_aggregate", "")
                             .typed<decltype(forward_any)>();
  return op.call(states, weights);
}

Gradients call_backward(const at::Tensor& grad_out, const at::Tensor& states,
                        const at::Tensor& weights, Wanted wanted) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("paperlab::depth_aggregate_backward", "")
                             .typed<decltype(backward_any)>();
  return op.call(grad_out, states, weights, wanted);
}

class DepthAggregate : public torch::autograd::Function<DepthAggregate> {
 public:
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& states,
                            const at::Tensor& weights) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    context->save_for_backward({states, weights});
    return call_forward(states, weights);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 const torch::autograd::variable_list& grads) {
    const auto saved = context->get_saved_variables();
    const Wanted wanted = {context->needs_input_grad(0), context->needs_input_grad(1)};
    const auto [grad_states, grad_weights] = call_backward(grads[0], saved[0], saved[1], wanted);
    return {wanted[0] ? grad_states : at::Tensor(), wanted[1] ? grad_weights : at::Tensor()};
  }
};

at::Tensor forward_autograd(const at::Tensor& states, const at::Tensor& weights) {
  check_arguments(kForward, states, weights);  // apply asks for sizes
  refuse_forward_gradients(kForward, states, weights);
  if (!at::GradMode::is_enabled() || !(states.requires_grad() || weights.requires_grad())) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    return call_forward(states, weights);
  }
  return DepthAggregate::apply(states, weights);
}

template <c10::DeviceType kDevice>
at::Tensor forward_autocast(const at::Tensor& states, const at::Tensor& weights) {
  const autocast::Guard<kDevice> guard;
  at::Tensor wide_states = states;
  at::Tensor wide_weights = weights;
  autocast::widen({&wide_states, &wide_weights});
  return call_forward(wide_states, wide_weights);
}

}  // namespace

at::Tensor depth_aggregate(const at::Tensor& states, const at::Tensor& weights) {
  TORCH_CHECK_VALUE(states.defined() && weights.defined(), kForward,
                    ": states and weights must be tensors");
  return call_forward(states, weights);
}

TORCH_LIBRARY_FRAGMENT(paperlab, m) {
  m.def("depth_aggregate(Tensor states, Tensor weights) -> Tensor");
  m.def(
      "depth_aggregate_backward(Tensor grad_out, Tensor states, Tensor weights, "
      "bool[2] wanted=[True, True]) -> (Tensor grad_states, Tensor grad_weights)");
}

// Every device.
TORCH_LIBRARY_IMPL(paperlab, CompositeExplicitAutograd, m) {
  m.impl("depth_aggregate", forward_any);
  m.impl("depth_aggregate_backward", backward_any);
}

TORCH_LIBRARY_IMPL(paperlab, Meta, m) {
  m.impl("depth_aggregate", forward_meta);
  m.impl("depth_aggregate_backward", backward_meta);
}

TORCH_LIBRARY_IMPL(paperlab, AutocastCPU, m) {
  m.impl("depth_aggregate", forward_autocast<at::kCPU>);
}

TORCH_LIBRARY_IMPL(paperlab, AutocastCUDA, m) {
  m.impl("depth_aggregate", forward_autocast<at::kCUDA>);
}

TORCH_LIBRARY_IMPL(paperlab, Autograd, m) {
  m.impl("depth_aggregate", forward_autograd);
  m.impl("depth_aggregate_backward", torch::autograd::autogradNotImplementedFallback());
}

}  // namespace paperlab::ops
