#include "paperlab/ops/connection_weights.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <array>
#include <cmath>
#include <string>
#include <tuple>

#include "kernels/common/backend.h"
#include "kernels/depth_aggregate/cuda.h"
#include "kernels/depth_aggregate/depth_aggregate.h"
#include "kernels/gemm/gemm.h"
#include "paperlab/ops/depth_checks_internal.h"
#include "paperlab/ops/depth_torch_internal.h"
#include "paperlab/ops/dispatch_rules_internal.h"
#include "paperlab/ops/kernel_dtype_internal.h"
#include "paperlab/ops/parallel_bridge.h"
#include "paperlab/ops/route_internal.h"

namespace paperlab::ops {

namespace depth {

void check_matrices(const char* function, const at::Tensor& x, const at::Tensor& w1,
                    const at::Tensor& w2, const c10::SymInt& num_weights) {
  check_floating(function, "x", x);
  TORCH_CHECK_VALUE(x.dim() == 3 && x.sym_size(2) >= 1, function,
                    ": x must be [B, T, D] with D >= 1, got ", x.sym_sizes());
  check_like(function, "w1", w1, "x", x);
  TORCH_CHECK_VALUE(w1.dim() == 2 && w1.sym_size(0) == x.sym_size(2) && w1.sym_size(1) >= 1,
                    function, ": w1 must be [", x.sym_size(2), ", K] with K >= 1, got ",
                    w1.sym_sizes());
  check_like(function, "w2", w2, "x", x);
  check_sizes(function, "w2", w2, {w1.sym_size(1), num_weights});
}

void check_generator(const char* function, const at::Tensor& x, const at::Tensor& w1,
                     const at::Tensor& w2, const at::Tensor& a) {
  check_floating(function, "x", x);
  check_like(function, "a", a, "x", x);
  TORCH_CHECK_VALUE(a.dim() == 2 && a.sym_size(0) >= 1 && a.sym_size(1) >= 1, function,
                    ": a must be [C, J] with C, J >= 1, got ", a.sym_sizes());
  check_matrices(function, x, w1, w2, a.sym_size(0) * a.sym_size(1));
}

void check_eps(const char* function, double eps, const at::Tensor& x) {
  TORCH_CHECK_VALUE(std::isfinite(eps) && eps > 0.0, function, ": eps must be finite and > 0, got ",
                    eps);
  TORCH_CHECK_VALUE(statistics_of(x) == at::kDouble || static_cast<float>(eps) > 0.0F, function,
                    ": eps must be > 0 in float32, got ", eps);
}

}  // namespace depth

namespace {

using depth::check_sizes;
using depth::statistics_of;
using kernels::GeluForm;

using Results = std::tuple<at::Tensor, at::Tensor, at::Tensor>;
using Gradients = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;
using Wanted = std::array<bool, 4>;  // gradients of x, w1, w2, a

constexpr char kForward[] = "connection_weights";
constexpr char kBackward[] = "connection_weights_backward";

// weights [C, B, T, J], z [B, T, K], inverse_rms [B, T].
Results new_results(const at::Tensor& x, const at::Tensor& w1, const at::Tensor& a) {
  const auto statistics = x.options().dtype(statistics_of(x));
  const auto rows = x.sym_sizes().slice(0, 2);
  return {at::empty_symint({a.sym_size(0), rows[0], rows[1], a.sym_size(1)}, x.options()),
          at::empty_symint({rows[0], rows[1], w1.sym_size(1)}, statistics),
          at::empty_symint(rows, statistics)};
}

// What is not wanted is empty.
Gradients new_gradients(const at::Tensor& grad_weights, const at::Tensor& x, const at::Tensor& w1,
                        const at::Tensor& w2, const Wanted& wanted) {
  const auto make = [&x](bool is_wanted, c10::SymIntArrayRef sizes) {
    return is_wanted ? at::empty_symint(sizes, x.options()) : at::empty({0}, x.options());
  };
  return {make(wanted[0], x.sym_sizes()), make(wanted[1], w1.sym_sizes()),
          make(wanted[2], w2.sym_sizes()),
          make(wanted[3], {grad_weights.sym_size(0), grad_weights.sym_size(3)})};
}

// [B, T, C J] of [C, B, T, J], and back.
at::Tensor by_token(const at::Tensor& weights) {
  const at::Tensor rows = weights.permute({1, 2, 0, 3});
  return rows.reshape({rows.size(0), rows.size(1), rows.size(2) * rows.size(3)});
}

at::Tensor by_way(const at::Tensor& rows, std::int64_t num_ways) {
  return rows.view({rows.size(0), rows.size(1), num_ways, rows.size(2) / num_ways})
      .permute({2, 0, 1, 3});
}

// The same from LibTorch's operations.
Results forward_torch(const at::Tensor& x, const at::Tensor& w1, const at::Tensor& w2,
                      const at::Tensor& a, double eps, GeluForm gelu) {
  const depth::GeneratedTorch made = depth::generate_torch(x, w1, w2, a, eps, gelu);
  return {by_way(made.rows, a.size(0)).to(x.scalar_type()).contiguous(), made.z.contiguous(),
          made.inverse_rms.contiguous()};
}

void backward_torch(const at::Tensor& grad_weights, const at::Tensor& x, const at::Tensor& w1,
                    const at::Tensor& w2, const at::Tensor& z, const at::Tensor& inverse_rms,
                    GeluForm gelu, const Wanted& wanted, const Gradients& gradients) {
  const at::Tensor grad = by_token(grad_weights.to(statistics_of(x))).flatten(0, 1);
  const auto found = depth::generate_backward_torch(
      {x.flatten(0, 1), w1, w2, z.flatten(0, 1), inverse_rms.flatten(), gelu}, grad, wanted);
  const auto& [grad_x, grad_w1, grad_w2, grad_a] = gradients;
  const std::array to = {&grad_x, &grad_w1, &grad_w2, &grad_a};
  for (std::size_t i = 0; i < to.size(); ++i) {
    if (wanted[i]) {
      to[i]->copy_(found[i].view(to[i]->sizes()));
    }
  }
}

kernels::ConnectionWeights problem_of(const at::Tensor& x, const at::Tensor& w1,
                                      const at::Tensor& w2, double eps, GeluForm gelu) {
  return {kernel_dtype(x),
          x.size(0) * x.size(1),
          x.size(2),
          w1.size(1),
          w2.size(1),
          eps,
          gelu,
          x.const_data_ptr(),
          w1.const_data_ptr(),
          w2.const_data_ptr(),
          nullptr};
}

// Tensors without elements on a GPU go through LibTorch's operations.
Route route_for(const at::Tensor& x) {
  return x.is_cpu() || x.numel() > 0 ? route_of(kForward, x) : Route::kTorch;
}

void run_forward(Route route, const kernels::ConnectionWeights& problem,
                 const kernels::ConnectionWeightsResult& result, const at::Tensor& like) {
  if (route == Route::kCpu) {
    kernels::connection_weights(problem, result, torch_executor());
  } else if constexpr (kernels::kHasCuda) {
    on_cuda(like, kernels::connection_weights_cuda_workspace(problem, result),
            [&](void* memory, const kernels::Context& context) {
              kernels::connection_weights_cuda(problem, result, memory, context);
            });
  }
}

void run_backward(Route route, const kernels::ConnectionWeights& problem,
                  const kernels::ConnectionWeightsGradients& gradients, const at::Tensor& like) {
  if (route == Route::kCpu) {
    kernels::connection_weights_backward(problem, gradients, kernels::gemm, torch_executor());
  } else if constexpr (kernels::kHasCuda) {
    on_cuda(like, kernels::connection_weights_backward_cuda_workspace(problem, gradients),
            [&](void* memory, const kernels::Context& context) {
              kernels::connection_weights_backward_cuda(problem, gradients, memory, context);
            });
  }
}

Results forward_any(const at::Tensor& x, const at::Tensor& w1, const at::Tensor& w2,
                    const at::Tensor& a, double eps, c10::string_view gelu_name) {
  depth::check_generator(kForward, x, w1, w2, a);
  depth::check_eps(kForward, eps, x);
  const GeluForm gelu = depth::gelu_form(kForward, gelu_name);
  const Route route = route_for(x);
  if (route == Route::kTorch) {
    return forward_torch(x, w1, w2, a, eps, gelu);
  }
  Results results = new_results(x, w1, a);
  const auto& [weights, z, inverse_rms] = results;
  if (weights.numel() == 0) {
    return results;
  }
  const at::Tensor rows = at::empty({x.size(0), x.size(1), a.numel()}, z.options());
  const at::Tensor dense_x = x.contiguous();
  const at::Tensor dense_w1 = w1.contiguous();
  const at::Tensor dense_w2 = w2.contiguous();
  const at::Tensor dense_a = a.contiguous();
  kernels::ConnectionWeights problem = problem_of(dense_x, dense_w1, dense_w2, eps, gelu);
  problem.bias = dense_a.const_data_ptr();
  run_forward(route, problem,
              {rows.mutable_data_ptr(), z.mutable_data_ptr(), inverse_rms.mutable_data_ptr()}, x);
  weights.copy_(by_way(rows, a.size(0)));
  return results;
}

void check_backward(const at::Tensor& grad_weights, const at::Tensor& x, const at::Tensor& w1,
                    const at::Tensor& w2, const at::Tensor& z, const at::Tensor& inverse_rms) {
  depth::check_like(kBackward, "grad_weights", grad_weights, "x", x);
  TORCH_CHECK_VALUE(grad_weights.dim() == 4, kBackward, ": grad_weights must be [C, B, T, J], got ",
                    grad_weights.sym_sizes());
  const auto sizes = grad_weights.sym_sizes();
  depth::check_matrices(kBackward, x, w1, w2, sizes[0] * sizes[3]);
  check_sizes(kBackward, "grad_weights", grad_weights,
              {sizes[0], x.sym_size(0), x.sym_size(1), sizes[3]});
  check_sizes(kBackward, "z", z, {x.sym_size(0), x.sym_size(1), w1.sym_size(1)});
  check_sizes(kBackward, "inverse_rms", inverse_rms, x.sym_sizes().slice(0, 2));
  for (const auto& [name, tensor] : {std::pair("z", &z), {"inverse_rms", &inverse_rms}}) {
    TORCH_CHECK_TYPE(tensor->scalar_type() == statistics_of(x), kBackward, ": ", name, " must be ",
                     statistics_of(x), ", got ", tensor->scalar_type());
    TORCH_CHECK_VALUE(tensor->device() == x.device(), kBackward, ": ", name,
                      " must be on the device of x (", x.device(), "), got ", tensor->device());
  }
}

void* data_of(const at::Tensor& gradient, bool is_wanted) {
  return is_wanted ? gradient.mutable_data_ptr() : nullptr;
}

Gradients backward_any(const at::Tensor& grad_weights, const at::Tensor& x, const at::Tensor& w1,
                       const at::Tensor& w2, const at::Tensor& z, const at::Tensor& inverse_rms,
                       c10::string_view gelu_name, Wanted wanted) {
  check_backward(grad_weights, x, w1, w2, z, inverse_rms);
  const GeluForm gelu = depth::gelu_form(kBackward, gelu_name);
  Gradients gradients = new_gradients(grad_weights, x, w1, w2, wanted);
  const auto& [grad_x, grad_w1, grad_w2, grad_a] = gradients;
  const Route route = route_for(x);
  if (route == Route::kTorch) {
    backward_torch(grad_weights, x, w1, w2, z, inverse_rms, gelu, wanted, gradients);
    return gradients;
  }
  const at::Tensor rows = by_token(grad_weights.to(statistics_of(x))).contiguous();
  const at::Tensor dense_x = x.contiguous();
  const at::Tensor dense_w1 = w1.contiguous();
  const at::Tensor dense_w2 = w2.contiguous();
  const at::Tensor dense_z = z.contiguous();
  const at::Tensor dense_inverse = inverse_rms.contiguous();
  constexpr double kUnused = 1.0;  // inverse_rms has eps in it
  run_backward(route, problem_of(dense_x, dense_w1, dense_w2, kUnused, gelu),
               {dense_z.const_data_ptr(), dense_inverse.const_data_ptr(), rows.const_data_ptr(),
                data_of(grad_x, wanted[0]), false, data_of(grad_w1, wanted[1]),
                data_of(grad_w2, wanted[2]), data_of(grad_a, wanted[3])},
               x);
  return gradients;
}

Results forward_meta(const at::Tensor& x, const at::Tensor& w1, const at::Tensor& w2,
                     const at::Tensor& a, double eps, c10::string_view gelu) {
  depth::check_generator(kForward, x, w1, w2, a);
  depth::check_eps(kForward, eps, x);
  depth::gelu_form(kForward, gelu);
  return new_results(x, w1, a);
}

Gradients backward_meta(const at::Tensor& grad_weights, const at::Tensor& x, const at::Tensor& w1,
                        const at::Tensor& w2, const at::Tensor& z, const at::Tensor& inverse_rms,
                        c10::string_view gelu, Wanted wanted) {
  check_backward(grad_weights, x, w1, w2, z, inverse_rms);
  depth::gelu_form(kBackward, gelu);
  return new_gradients(grad_weights, x, w1, w2, wanted);
}

Results call_forward(const at::Tensor& x, const at::Tensor& w1, const at::Tensor& w2,
                     const at::Tensor& a, double eps, c10::string_view gelu) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("paperlab::connection_weights", "")
                             .typed<decltype(forward_any)>();
  return op.call(x, w1, w2, a, eps, gelu);
}

Gradients call_backward(const at::Tensor& grad_weights, const at::Tensor& x, const at::Tensor& w1,
                        const at::Tensor& w2, const at::Tensor& z, const at::Tensor& inverse_rms,
                        c10::string_view gelu, Wanted wanted) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("paperlab::connection_weights_backward", "")
                             .typed<decltype(backward_any)>();
  return op.call(grad_weights, x, w1, w2, z, inverse_rms, gelu, wanted);
}

class ConnectionWeights : public torch::autograd::Function<ConnectionWeights> {
 public:
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext* context,
                                                const at::Tensor& x, const at::Tensor& w1,
                                                const at::Tensor& w2, const at::Tensor& a,
                                                double eps, const std::string& gelu) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    const auto [weights, z, inverse_rms] = call_forward(x, w1, w2, a, eps, gelu);
    context->save_for_backward({x, w1, w2, z, inverse_rms});
    context->saved_data["gelu"] = gelu;
    context->mark_non_differentiable({z, inverse_rms});
    return {weights, z, inverse_rms};
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 const torch::autograd::variable_list& grads) {
    const auto saved = context->get_saved_variables();
    const Wanted wanted = {context->needs_input_grad(0), context->needs_input_grad(1),
                           context->needs_input_grad(2), context->needs_input_grad(3)};
    const auto [grad_x, grad_w1, grad_w2, grad_a] =
        call_backward(grads[0], saved[0], saved[1], saved[2], saved[3], saved[4],
                      context->saved_data["gelu"].toStringView(), wanted);
    torch::autograd::variable_list results = {grad_x, grad_w1, grad_w2, grad_a};
    for (std::size_t i = 0; i < results.size(); ++i) {
      results[i] = wanted[i] ? results[i] : at::Tensor();
    }
    results.resize(6);
    return results;
  }
};

Results forward_autograd(const at::Tensor& x, const at::Tensor& w1, const at::Tensor& w2,
                         const at::Tensor& a, double eps, c10::string_view gelu) {
  depth::check_generator(kForward, x, w1, w2, a);  // apply asks for sizes
  refuse_forward_gradients(kForward, x, w1, w2, a);
  const bool needs_grad =
      x.requires_grad() || w1.requires_grad() || w2.requires_grad() || a.requires_grad();
  if (!at::GradMode::is_enabled() || !needs_grad) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    return call_forward(x, w1, w2, a, eps, gelu);
  }
  const auto results = ConnectionWeights::apply(x, w1, w2, a, eps, std::string(gelu));
  return {results[0], results[1], results[2]};
}

template <c10::DeviceType kDevice>
Results forward_autocast(const at::Tensor& x, const at::Tensor& w1, const at::Tensor& w2,
                         const at::Tensor& a, double eps, c10::string_view gelu) {
  const autocast::Guard<kDevice> guard;
  std::array<at::Tensor, 4> wide = {x, w1, w2, a};
  autocast::widen({&wide[0], &wide[1], &wide[2], &wide[3]});
  return call_forward(wide[0], wide[1], wide[2], wide[3], eps, gelu);
}

}  // namespace

at::Tensor connection_weights(const at::Tensor& x, const at::Tensor& w1, const at::Tensor& w2,
                              const at::Tensor& a, const ConnectionWeightsOptions& options) {
  TORCH_CHECK_VALUE(x.defined() && w1.defined() && w2.defined() && a.defined(), kForward,
                    ": x, w1, w2 and a must be tensors");
  return std::get<0>(call_forward(x, w1, w2, a, options.eps,
                                  c10::string_view(options.gelu.data(), options.gelu.size())));
}

TORCH_LIBRARY_FRAGMENT(paperlab, m) {
  m.def(
      "connection_weights(Tensor x, Tensor w1, Tensor w2, Tensor a, float eps=1e-06, "
      "str gelu=\"exact\") -> (Tensor weights, Tensor z, Tensor inverse_rms)");
  m.def(
      "connection_weights_backward(Tensor grad_weights, Tensor x, Tensor w1, Tensor w2, Tensor z, "
      "Tensor inverse_rms, str gelu=\"exact\", bool[4] wanted=[True, True, True, True]) "
      "-> (Tensor grad_x, Tensor grad_w1, Tensor grad_w2, Tensor grad_a)");
}

// Every device.
TORCH_LIBRARY_IMPL(paperlab, CompositeExplicitAutograd, m) {
  m.impl("connection_weights", forward_any);
  m.impl("connection_weights_backward", backward_any);
}

TORCH_LIBRARY_IMPL(paperlab, Meta, m) {
  m.impl("connection_weights", forward_meta);
  m.impl("connection_weights_backward", backward_meta);
}

TORCH_LIBRARY_IMPL(paperlab, AutocastCPU, m) {
  m.impl("connection_weights", forward_autocast<at::kCPU>);
}

TORCH_LIBRARY_IMPL(paperlab, AutocastCUDA, m) {
  m.impl("connection_weights", forward_autocast<at::kCUDA>);
}

TORCH_LIBRARY_IMPL(paperlab, Autograd, m) {
  m.impl("connection_weights", forward_autograd);
  m.impl("connection_weights_backward", torch::autograd::autogradNotImplementedFallback());
}

}  // namespace paperlab::ops
