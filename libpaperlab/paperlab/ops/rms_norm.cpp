#include "paperlab/ops/rms_norm.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros_like.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <cmath>
#include <optional>
#include <tuple>

#include "kernels/common/backend.h"
#include "kernels/rms_norm/cuda.h"
#include "kernels/rms_norm/rms_norm.h"
#include "paperlab/ops/dispatch_rules_internal.h"
#include "paperlab/ops/kernel_dtype_internal.h"
#include "paperlab/ops/parallel_bridge.h"
#include "paperlab/ops/route_internal.h"
#include "paperlab/ops/row_forms_internal.h"

namespace paperlab::ops {
namespace {

constexpr char kForward[] = "rms_norm";

using Results = std::tuple<at::Tensor, at::Tensor, at::Tensor>;
using Gradients = std::tuple<at::Tensor, at::Tensor>;

void check_tensor(const char* function, const char* name, const at::Tensor& x,
                  const at::Tensor& like) {
  TORCH_CHECK_TYPE(x.scalar_type() == like.scalar_type(), function, ": ", name,
                   " must be of the dtype of x (", like.scalar_type(), "), got ", x.scalar_type());
  TORCH_CHECK_VALUE(x.layout() == at::kStrided, function, ": ", name,
                    " must be strided, got layout ", x.layout());
  TORCH_CHECK_VALUE(x.device() == like.device(), function, ": ", name,
                    " must be on the device of x (", like.device(), "), got ", x.device());
}

void check_sizes(const char* function, const char* name, const at::Tensor& x,
                 c10::SymIntArrayRef sizes) {
  TORCH_CHECK_VALUE(x.sym_sizes() == sizes, function, ": ", name, " must be ", sizes, ", got ",
                    x.sym_sizes());
}

// Shapes and dtypes, also of tensors without data.
void check_arguments(const char* function, const at::Tensor& x, const at::Tensor& weight,
                     const std::optional<at::Tensor>& residual) {
  check_kernel_dtype(function, "x", x);
  check_tensor(function, "x", x, x);
  TORCH_CHECK_VALUE(x.dim() >= 1 && x.sym_size(-1) >= 1, function,
                    ": x must be [..., W] with W >= 1, got ", x.sym_sizes());
  check_tensor(function, "weight", weight, x);
  check_sizes(function, "weight", weight, {x.sym_size(-1)});
  if (residual.has_value()) {
    check_tensor(function, "residual", *residual, x);
    check_sizes(function, "residual", *residual, x.sym_sizes());
  }
}

void check_eps(double eps) {
  TORCH_CHECK_VALUE(std::isfinite(eps) && eps >= 0.0, "rms_norm: eps must be finite and >= 0, got ",
                    eps);
}

void check_backward(const at::Tensor& grad_y, const std::optional<at::Tensor>& grad_sum,
                    const at::Tensor& s, const at::Tensor& weight, const at::Tensor& inverse_rms) {
  constexpr char kFunction[] = "rms_norm_backward";
  check_arguments(kFunction, s, weight, grad_sum);
  check_tensor(kFunction, "grad_y", grad_y, s);
  check_sizes(kFunction, "grad_y", grad_y, s.sym_sizes());
  check_sizes(kFunction, "inverse_rms", inverse_rms, s.sym_sizes().slice(0, s.dim() - 1));
  TORCH_CHECK_VALUE(inverse_rms.layout() == at::kStrided && inverse_rms.device() == s.device(),
                    kFunction, ": inverse_rms must be strided and on the device of s (", s.device(),
                    "), got layout ", inverse_rms.layout(), " on ", inverse_rms.device());
  const auto statistics = statistics_dtype(s.scalar_type());
  TORCH_CHECK_TYPE(inverse_rms.scalar_type() == statistics, kFunction, ": inverse_rms must be ",
                   statistics, ", got ", inverse_rms.scalar_type());
}

at::Tensor new_like(const at::Tensor& x) { return at::empty_symint(x.sym_sizes(), x.options()); }

Results new_results(const at::Tensor& x, bool has_residual) {
  const auto statistics = statistics_dtype(x.scalar_type());
  return {new_like(x), has_residual ? new_like(x) : at::empty({0}, x.options()),
          at::empty_symint(x.sym_sizes().slice(0, x.dim() - 1), x.options().dtype(statistics))};
}

const void* data_of(const std::optional<at::Tensor>& x) {
  return x.has_value() ? x->const_data_ptr() : nullptr;
}

std::optional<at::Tensor> contiguous(const std::optional<at::Tensor>& x) {
  return x.has_value() ? std::optional(x->contiguous()) : std::nullopt;
}

// `like` is where the problem's memory lies.
void run(Route route, const kernels::RmsNormForward& problem, const at::Tensor& like) {
  if (route == Route::kCpu) {
    kernels::rms_norm(problem, torch_executor());
  } else if constexpr (kernels::kHasCuda) {
    on_cuda(like, kernels::rms_norm_cuda_workspace(problem),
            [&](void* memory, const kernels::Context& context) {
              kernels::rms_norm_cuda(problem, memory, context);
            });
  }
}

void run(Route route, const kernels::RmsNormBackward& problem, const at::Tensor& like) {
  if (route == Route::kCpu) {
    kernels::rms_norm_backward(problem, torch_executor());
  } else if constexpr (kernels::kHasCuda) {
    on_cuda(like, kernels::rms_norm_backward_cuda_workspace(problem),
            [&](void* memory, const kernels::Context& context) {
              kernels::rms_norm_backward_cuda(problem, memory, context);
            });
  }
}

Results forward_any(const at::Tensor& x, const at::Tensor& weight,
                    const std::optional<at::Tensor>& residual, double eps) {
  check_arguments("rms_norm", x, weight, residual);
  check_eps(eps);
  const Route route = route_of(kForward, x);
  if (route == Route::kTorch) {
    return forms::rms_norm(x, weight, residual, eps);
  }
  Results results = new_results(x, residual.has_value());
  if (x.numel() == 0) {
    return results;
  }
  const auto& [y, sum, inverse_rms] = results;
  const at::Tensor dense_x = x.contiguous();
  const at::Tensor dense_weight = weight.contiguous();
  const std::optional<at::Tensor> dense_residual = contiguous(residual);
  run(route,
      {kernel_dtype(x), x.numel() / x.size(-1), x.size(-1), eps, dense_x.const_data_ptr(),
       data_of(dense_residual), dense_weight.const_data_ptr(), y.mutable_data_ptr(),
       residual.has_value() ? sum.mutable_data_ptr() : nullptr, inverse_rms.mutable_data_ptr()},
      x);
  return results;
}

Gradients backward_any(const at::Tensor& grad_y, const std::optional<at::Tensor>& grad_sum,
                       const at::Tensor& s, const at::Tensor& weight,
                       const at::Tensor& inverse_rms) {
  check_backward(grad_y, grad_sum, s, weight, inverse_rms);
  const Route route = route_of(kForward, s);
  if (route == Route::kTorch) {
    return forms::rms_norm_backward(grad_y, grad_sum, s, weight, inverse_rms);
  }
  Gradients gradients = {new_like(s), new_like(weight)};
  const auto& [grad_x, grad_weight] = gradients;
  const at::Tensor dense_grad = grad_y.contiguous();
  const std::optional<at::Tensor> dense_grad_sum = contiguous(grad_sum);
  const at::Tensor dense_s = s.contiguous();
  const at::Tensor dense_weight = weight.contiguous();
  const at::Tensor dense_inverse = inverse_rms.contiguous();
  run(route,
      {kernel_dtype(s), s.numel() / s.size(-1), s.size(-1), dense_grad.const_data_ptr(),
       data_of(dense_grad_sum), dense_s.const_data_ptr(), dense_weight.const_data_ptr(),
       dense_inverse.const_data_ptr(), grad_x.mutable_data_ptr(), grad_weight.mutable_data_ptr()},
      s);
  return gradients;
}

Results forward_meta(const at::Tensor& x, const at::Tensor& weight,
                     const std::optional<at::Tensor>& residual, double eps) {
  check_arguments("rms_norm", x, weight, residual);
  check_eps(eps);
  return new_results(x, residual.has_value());
}

Gradients backward_meta(const at::Tensor& grad_y, const std::optional<at::Tensor>& grad_sum,
                        const at::Tensor& s, const at::Tensor& weight,
                        const at::Tensor& inverse_rms) {
  check_backward(grad_y, grad_sum, s, weight, inverse_rms);
  return {new_like(s), new_like(weight)};
}

Results call_forward(const at::Tensor& x, const at::Tensor& weight,
                     const std::optional<at::Tensor>& residual, double eps) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("paperlab::rms_norm", "")
                             .typed<decltype(forward_any)>();
  return op.call(x, weight, residual, eps);
}

Gradients call_backward(const at::Tensor& grad_y, const std::optional<at::Tensor>& grad_sum,
                        const at::Tensor& s, const at::Tensor& weight,
                        const at::Tensor& inverse_rms) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("paperlab::rms_norm_backward", "")
                             .typed<decltype(backward_any)>();
  return op.call(grad_y, grad_sum, s, weight, inverse_rms);
}

class RmsNorm : public torch::autograd::Function<RmsNorm> {
 public:
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext* context,
                                                const at::Tensor& x, const at::Tensor& weight,
                                                const std::optional<at::Tensor>& residual,
                                                double eps) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    const auto [y, sum, inverse_rms] = call_forward(x, weight, residual, eps);
    context->set_materialize_grads(false);
    context->save_for_backward({residual.has_value() ? sum : x, weight, inverse_rms});
    context->saved_data["adds"] = residual.has_value();
    context->mark_non_differentiable(residual.has_value()
                                         ? torch::autograd::variable_list{inverse_rms}
                                         : torch::autograd::variable_list{sum, inverse_rms});
    return {y, sum, inverse_rms};
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 const torch::autograd::variable_list& grads) {
    if (!grads[0].defined() && !grads[1].defined()) {
      return torch::autograd::variable_list(4);
    }
    const auto saved = context->get_saved_variables();
    const at::Tensor grad_y = grads[0].defined() ? grads[0] : at::zeros_like(saved[0]);
    const auto [grad_x, grad_weight] =
        call_backward(grad_y, grads[1].defined() ? std::optional(grads[1]) : std::nullopt, saved[0],
                      saved[1], saved[2]);
    return {grad_x, grad_weight, context->saved_data["adds"].toBool() ? grad_x : at::Tensor(),
            at::Tensor()};
  }
};

Results forward_autograd(const at::Tensor& x, const at::Tensor& weight,
                         const std::optional<at::Tensor>& residual, double eps) {
  check_arguments("rms_norm", x, weight, residual);  // apply asks for sizes
  refuse_forward_gradients("rms_norm", x, weight, residual);
  const auto results = RmsNorm::apply(x, weight, residual, eps);
  return {results[0], results[1], results[2]};
}

template <c10::DeviceType kDevice>
Results forward_autocast(const at::Tensor& x, const at::Tensor& weight,
                         const std::optional<at::Tensor>& residual, double eps) {
  const autocast::Guard<kDevice> guard;
  at::Tensor wide_x = x;
  at::Tensor wide_weight = weight;
  at::Tensor wide_residual = residual.value_or(at::Tensor());
  autocast::widen({&wide_x, &wide_weight, &wide_residual});
  return call_forward(wide_x, wide_weight,
                      residual.has_value() ? std::optional(wide_residual) : std::nullopt, eps);
}

}  // namespace

RmsNormResult rms_norm(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& residual,
                       double eps) {
  TORCH_CHECK_VALUE(x.defined() && weight.defined(), "rms_norm: x and weight must be tensors");
  const auto [y, sum, inverse_rms] =
      call_forward(x, weight, residual.defined() ? std::optional(residual) : std::nullopt, eps);
  return {y, residual.defined() ? sum : at::Tensor()};
}

TORCH_LIBRARY_FRAGMENT(paperlab, m) {
  m.def(
      "rms_norm(Tensor x, Tensor weight, Tensor? residual=None, float eps=1e-06) "
      "-> (Tensor y, Tensor sum, Tensor inverse_rms)");
  m.def(
      "rms_norm_backward(Tensor grad_y, Tensor? grad_sum, Tensor s, Tensor weight, "
      "Tensor inverse_rms) -> (Tensor grad_x, Tensor grad_weight)");
}

// Every device, so that a tensor on another one is refused by name.
TORCH_LIBRARY_IMPL(paperlab, CompositeExplicitAutograd, m) {
  m.impl("rms_norm", forward_any);
  m.impl("rms_norm_backward", backward_any);
}

TORCH_LIBRARY_IMPL(paperlab, Meta, m) {
  m.impl("rms_norm", forward_meta);
  m.impl("rms_norm_backward", backward_meta);
}

TORCH_LIBRARY_IMPL(paperlab, AutocastCPU, m) { m.impl("rms_norm", forward_autocast<at::kCPU>); }

TORCH_LIBRARY_IMPL(paperlab, AutocastCUDA, m) { m.impl("rms_norm", forward_autocast<at::kCUDA>); }

TORCH_LIBRARY_IMPL(paperlab, Autograd, m) {
  m.impl("rms_norm", forward_autograd);
  m.impl("rms_norm_backward", torch::autograd::autogradNotImplementedFallback());
}

}  // namespace paperlab::ops
