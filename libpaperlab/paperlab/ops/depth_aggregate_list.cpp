// The sum over states that are tensors of their own: they are read where they lie, and the backward
// pass keeps them themselves.

#include <ATen/core/List.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/stack.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "paperlab/ops/depth_aggregate.h"
#include "paperlab/ops/depth_aggregate_internal.h"
#include "paperlab/ops/depth_checks_internal.h"
#include "paperlab/ops/depth_torch_internal.h"
#include "paperlab/ops/dispatch_rules_internal.h"

namespace paperlab::ops {
namespace {

using Tensors = std::vector<at::Tensor>;
using Gradients = std::tuple<Tensors, at::Tensor>;
using Wanted = c10::List<bool>;  // gradients of the states, weights

constexpr char kForward[] = "depth_aggregate";
constexpr char kBackward[] = "depth_aggregate_backward";

std::int64_t count(at::TensorList states) { return static_cast<std::int64_t>(states.size()); }

void check_arguments(const char* function, at::TensorList states, const at::Tensor& weights) {
  TORCH_CHECK_VALUE(!states.empty(), function,
                    ": states must be a list of J >= 1 tensors [B, T, D], got none");
  const at::Tensor& first = states[0];
  depth::check_floating(function, "states[0]", first);
  TORCH_CHECK_VALUE(first.dim() == 3 && first.sym_size(2) >= 1, function,
                    ": states[0] must be [B, T, D] with D >= 1, got ", first.sym_sizes());
  for (std::size_t j = 1; j < states.size(); ++j) {
    const std::string name = "states[" + std::to_string(j) + "]";
    depth::check_like(function, name.c_str(), states[j], "states[0]", first);
    TORCH_CHECK_VALUE(states[j].sym_sizes() == first.sym_sizes(), function, ": ", name,
                      " must be of the shape of states[0] ", first.sym_sizes(), ", got ",
                      states[j].sym_sizes());
  }
  depth::check_like(function, "weights", weights, "states[0]", first);
  depth::check_weights(function, weights, first.sym_size(0), first.sym_size(1), count(states));
}

std::vector<c10::SymInt> sizes_of_result(const at::Tensor& state, const at::Tensor& weights) {
  return {weights.sym_size(0), state.sym_size(0), state.sym_size(1), state.sym_size(2)};
}

void check_backward(const at::Tensor& grad_out, at::TensorList states, const at::Tensor& weights,
                    const Wanted& wanted) {
  check_arguments(kBackward, states, weights);
  depth::check_like(kBackward, "grad_out", grad_out, "states[0]", states[0]);
  depth::check_sizes(kBackward, "grad_out", grad_out, sizes_of_result(states[0], weights));
  TORCH_CHECK_VALUE(wanted.size() == states.size() + 1, kBackward, ": wanted must have ",
                    states.size() + 1, " elements, got ", wanted.size());
}

at::Tensor new_result(const at::Tensor& state, const at::Tensor& weights) {
  return at::empty_symint(sizes_of_result(state, weights), state.options());
}

// What is not wanted is empty.
Gradients new_gradients(at::TensorList states, const at::Tensor& weights, const Wanted& wanted) {
  const auto make = [](bool is_wanted, const at::Tensor& like) {
    return is_wanted ? at::empty_symint(like.sym_sizes(), like.options())
                     : at::empty({0}, like.options());
  };
  Tensors grad_states;
  grad_states.reserve(states.size());
  for (std::size_t j = 0; j < states.size(); ++j) {
    grad_states.push_back(make(wanted[j], states[j]));
  }
  return {std::move(grad_states), make(wanted[states.size()], weights)};
}

// Those that are not contiguous are copied.
Tensors readable(at::TensorList states) {
  Tensors dense;
  dense.reserve(states.size());
  for (const at::Tensor& state : states) {
    dense.push_back(state.contiguous());
  }
  return dense;
}

std::vector<const void*> pointers_to(const Tensors& dense) {
  std::vector<const void*> pointers;
  pointers.reserve(dense.size());
  for (const at::Tensor& state : dense) {
    pointers.push_back(state.const_data_ptr());
  }
  return pointers;
}

at::Tensor forward_any(at::TensorList states, const at::Tensor& weights) {
  check_arguments(kForward, states, weights);
  const Route route = depth::route_of_sum(states[0], count(states));
  if (route == Route::kTorch) {
    return depth::sum_torch(at::stack(states), weights);
  }
  const at::Tensor out = new_result(states[0], weights);
  if (out.numel() > 0) {
    const Tensors dense = readable(states);
    depth::sum_by_kernel(route, pointers_to(dense), weights, out);
  }
  return out;
}

void backward_torch(const at::Tensor& grad_out, at::TensorList states, const at::Tensor& weights,
                    const Wanted& wanted, Gradients& gradients) {
  const at::Tensor grad = depth::tokens_of(grad_out);
  auto& [grad_states, grad_weights] = gradients;
  depth::state_gradients_torch(
      grad, depth::tokens_of(weights), count(states),
      [&](std::int64_t first, const at::Tensor& part) {  // [J, some tokens, D]
        for (std::size_t j = 0; j < states.size(); ++j) {
          if (wanted[j]) {
            const at::Tensor rows = grad_states[j].flatten(0, 1).narrow(0, first, part.size(1));
            rows.copy_(part.select(0, static_cast<std::int64_t>(j)));
          }
        }
      });
  if (wanted[states.size()]) {
    const at::Tensor all = depth::tokens_of(at::stack(states));
    grad_weights.copy_(depth::weight_gradients_torch(grad, all).view(weights.sizes()));
  }
}

Gradients backward_any(const at::Tensor& grad_out, at::TensorList states, const at::Tensor& weights,
                       Wanted wanted) {
  check_backward(grad_out, states, weights, wanted);
  Gradients gradients = new_gradients(states, weights, wanted);
  auto& [grad_states, grad_weights] = gradients;
  const Route route = depth::route_of_sum(states[0], count(states));
  if (route == Route::kTorch) {
    backward_torch(grad_out, states, weights, wanted, gradients);
  } else if (grad_out.numel() > 0) {
    const Tensors dense = readable(states);
    std::vector<void*> grad_sources(states.size());
    for (std::size_t j = 0; j < states.size(); ++j) {
      grad_sources[j] = wanted[j] ? grad_states[j].mutable_data_ptr() : nullptr;
    }
    depth::gradients_by_kernel(route, grad_out, pointers_to(dense), weights, grad_sources,
                               wanted[states.size()] ? &grad_weights : nullptr);
  }
  return gradients;
}

at::Tensor forward_meta(at::TensorList states, const at::Tensor& weights) {
  check_arguments(kForward, states, weights);
  return new_result(states[0], weights);
}

Gradients backward_meta(const at::Tensor& grad_out, at::TensorList states,
                        const at::Tensor& weights, Wanted wanted) {
  check_backward(grad_out, states, weights, wanted);
  return new_gradients(states, weights, wanted);
}

at::Tensor call_forward(at::TensorList states, const at::Tensor& weights) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("paperlab::depth_aggregate_list", "")
                             .typed<decltype(forward_any)>();
  return op.call(states, weights);
}

Gradients call_backward(const at::Tensor& grad_out, at::TensorList states,
                        const at::Tensor& weights, const Wanted& wanted) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("paperlab::depth_aggregate_list_backward", "")
                             .typed<decltype(backward_any)>();
  return op.call(grad_out, states, weights, wanted);
}

class DepthAggregateList : public torch::autograd::Function<DepthAggregateList> {
 public:
  static at::Tensor forward(torch::autograd::AutogradContext* context, at::TensorList states,
                            const at::Tensor& weights) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    Tensors saved = states.vec();
    saved.push_back(weights);
    context->save_for_backward(std::move(saved));
    return call_forward(states, weights);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 const torch::autograd::variable_list& grads) {
    Tensors states = context->get_saved_variables();
    const at::Tensor weights = states.back();
    states.pop_back();
    Wanted wanted;
    for (std::size_t j = 0; j <= states.size(); ++j) {
      wanted.push_back(context->needs_input_grad(j));
    }
    auto [result, grad_weights] = call_backward(grads[0], states, weights, wanted);
    result.push_back(grad_weights);
    for (std::size_t j = 0; j < result.size(); ++j) {
      result[j] = wanted[j] ? result[j] : at::Tensor();
    }
    return result;
  }
};

at::Tensor forward_autograd(at::TensorList states, const at::Tensor& weights) {
  check_arguments(kForward, states, weights);  // apply asks for sizes
  bool requires_grad = weights.requires_grad();
  refuse_forward_gradient(kForward, weights);
  for (const at::Tensor& state : states) {
    refuse_forward_gradient(kForward, state);
    requires_grad = requires_grad || state.requires_grad();
  }
  if (!at::GradMode::is_enabled() || !requires_grad) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    return call_forward(states, weights);
  }
  return DepthAggregateList::apply(states, weights);
}

// All in the widest floating dtype among them.
template <c10::DeviceType kDevice>
at::Tensor forward_autocast(at::TensorList states, const at::Tensor& weights) {
  const autocast::Guard<kDevice> guard;
  at::Tensor wide_weights = weights;
  Tensors wide = states.vec();
  for (at::Tensor& state : wide) {
    autocast::widen({&wide_weights, &state});
  }
  for (at::Tensor& state : wide) {
    autocast::widen({&wide_weights, &state});  // the first ones saw no later dtype
  }
  return call_forward(wide, wide_weights);
}

}  // namespace

at::Tensor depth_aggregate(at::TensorList states, const at::Tensor& weights) {
  for (const at::Tensor& state : states) {
    TORCH_CHECK_VALUE(state.defined(), kForward, ": states must be tensors");
  }
  TORCH_CHECK_VALUE(weights.defined(), kForward, ": weights must be a tensor");
  return call_forward(states, weights);
}

TORCH_LIBRARY_FRAGMENT(paperlab, m) {
  m.def("depth_aggregate_list(Tensor[] states, Tensor weights) -> Tensor");
  m.def(
      "depth_aggregate_list_backward(Tensor grad_out, Tensor[] states, Tensor weights, "
      "bool[] wanted) -> (Tensor[] grad_states, Tensor grad_weights)");
}

// Every device.
TORCH_LIBRARY_IMPL(paperlab, CompositeExplicitAutograd, m) {
  m.impl("depth_aggregate_list", forward_any);
  m.impl("depth_aggregate_list_backward", backward_any);
}

TORCH_LIBRARY_IMPL(paperlab, Meta, m) {
  m.impl("depth_aggregate_list", forward_meta);
  m.impl("depth_aggregate_list_backward", backward_meta);
}

TORCH_LIBRARY_IMPL(paperlab, AutocastCPU, m) {
  m.impl("depth_aggregate_list", forward_autocast<at::kCPU>);
}

TORCH_LIBRARY_IMPL(paperlab, AutocastCUDA, m) {
  m.impl("depth_aggregate_list", forward_autocast<at::kCUDA>);
}

TORCH_LIBRARY_IMPL(paperlab, Autograd, m) {
  m.impl("depth_aggregate_list", forward_autograd);
  m.impl("depth_aggregate_list_backward", torch::autograd::autogradNotImplementedFallback());
}

}  // namespace paperlab::ops
