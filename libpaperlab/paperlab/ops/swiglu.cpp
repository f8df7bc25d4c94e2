#include "paperlab/ops/swiglu.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <tuple>

#include "kernels/common/backend.h"
#include "kernels/swiglu/cuda.h"
#include "kernels/swiglu/swiglu.h"
#include "paperlab/ops/dispatch_rules_internal.h"
#include "paperlab/ops/kernel_dtype_internal.h"
#include "paperlab/ops/parallel_bridge.h"
#include "paperlab/ops/route_internal.h"
#include "paperlab/ops/row_forms_internal.h"

namespace paperlab::ops {
namespace {

using Gradients = std::tuple<at::Tensor, at::Tensor>;

void check_like_gate(const char* function, const char* name, const at::Tensor& x,
                     const at::Tensor& gate) {
  TORCH_CHECK_TYPE(x.scalar_type() == gate.scalar_type(), function, ": ", name,
                   " must be of the dtype of gate (", gate.scalar_type(), "), got ",
                   x.scalar_type());
  TORCH_CHECK_VALUE(x.layout() == at::kStrided, function, ": ", name,
                    " must be strided, got layout ", x.layout());
  TORCH_CHECK_VALUE(x.device() == gate.device(), function, ": ", name,
                    " must be on the device of gate (", gate.device(), "), got ", x.device());
  TORCH_CHECK_VALUE(x.sym_sizes() == gate.sym_sizes(), function, ": ", name, " must be ",
                    gate.sym_sizes(), ", got ", x.sym_sizes());
}

// Shapes and dtypes, also of tensors without data.
void check_arguments(const char* function, const at::Tensor& gate, const at::Tensor& up) {
  check_kernel_dtype(function, "gate", gate);
  check_like_gate(function, "gate", gate, gate);
  TORCH_CHECK_VALUE(gate.dim() >= 1, function, ": gate must be [..., F], got a number");
  check_like_gate(function, "up", up, gate);
}

at::Tensor new_like(const at::Tensor& x) { return at::empty_symint(x.sym_sizes(), x.options()); }

// [N, F] with contiguous rows: a view where the strides allow it. Not for empty tensors.
at::Tensor as_rows(const at::Tensor& x) {
  const at::Tensor rows = x.reshape({-1, x.size(-1)});
  return rows.size(1) == 1 || rows.stride(1) == 1 ? rows : rows.contiguous();
}

kernels::Rows rows_of(const at::Tensor& x) { return {x.const_data_ptr(), x.stride(0)}; }
kernels::MutableRows mutable_rows_of(const at::Tensor& x) {
  return {x.mutable_data_ptr(), x.size(-1)};  // x is contiguous
}

kernels::Swiglu problem_of(const at::Tensor& gate, const at::Tensor& up) {
  return {kernel_dtype(gate), gate.size(0), gate.size(1), rows_of(gate), rows_of(up)};
}

at::Tensor forward_any(const at::Tensor& gate, const at::Tensor& up) {
  check_arguments("swiglu", gate, up);
  const Route route = route_of("swiglu", gate, "gate");
  if (route == Route::kTorch) {
    return forms::swiglu(gate, up);
  }
  at::Tensor y = new_like(gate);
  if (gate.numel() > 0) {
    const at::Tensor gate_rows = as_rows(gate);
    const at::Tensor up_rows = as_rows(up);
    const kernels::Swiglu problem = problem_of(gate_rows, up_rows);
    if (route == Route::kCpu) {
      kernels::swiglu(problem, mutable_rows_of(y), torch_executor());
    } else if constexpr (kernels::kHasCuda) {
      const CudaCall cuda(gate);
      kernels::swiglu_cuda(problem, mutable_rows_of(y), cuda.context);
    }
  }
  return y;
}

void check_backward(const at::Tensor& grad_y, const at::Tensor& gate, const at::Tensor& up) {
  check_arguments("swiglu_backward", gate, up);
  check_like_gate("swiglu_backward", "grad_y", grad_y, gate);
}

Gradients backward_any(const at::Tensor& grad_y, const at::Tensor& gate, const at::Tensor& up) {
  check_backward(grad_y, gate, up);
  const Route route = route_of("swiglu", gate, "gate");
  if (route == Route::kTorch) {
    return forms::swiglu_backward(grad_y, gate, up);
  }
  Gradients gradients = {new_like(gate), new_like(gate)};
  if (gate.numel() > 0) {
    const at::Tensor grad_rows = as_rows(grad_y);
    const at::Tensor gate_rows = as_rows(gate);
    const at::Tensor up_rows = as_rows(up);
    const kernels::Swiglu problem = problem_of(gate_rows, up_rows);
    const kernels::MutableRows of_gate = mutable_rows_of(std::get<0>(gradients));
    const kernels::MutableRows of_up = mutable_rows_of(std::get<1>(gradients));
    if (route == Route::kCpu) {
      kernels::swiglu_backward(problem, rows_of(grad_rows), of_gate, of_up, torch_executor());
    } else if constexpr (kernels::kHasCuda) {
      const CudaCall cuda(gate);
      kernels::swiglu_backward_cuda(problem, rows_of(grad_rows), of_gate, of_up, cuda.context);
    }
  }
  return gradients;
}

at::Tensor forward_meta(const at::Tensor& gate, const at::Tensor& up) {
  check_arguments("swiglu", gate, up);
  return new_like(gate);
}

Gradients backward_meta(const at::Tensor& grad_y, const at::Tensor& gate, const at::Tensor& up) {
  check_backward(grad_y, gate, up);
  return {new_like(gate), new_like(gate)};
}

at::Tensor call_forward(const at::Tensor& gate, const at::Tensor& up) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("paperlab::swiglu", "")
                             .typed<decltype(forward_any)>();
  return op.call(gate, up);
}

Gradients call_backward(const at::Tensor& grad_y, const at::Tensor& gate, const at::Tensor& up) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("paperlab::swiglu_backward", "")
                             .typed<decltype(backward_any)>();
  return op.call(grad_y, gate, up);
}

class Swiglu : public torch::autograd::Function<Swiglu> {
 public:
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& gate,
                            const at::Tensor& up) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    context->save_for_backward({gate, up});
    return call_forward(gate, up);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 const torch::autograd::variable_list& grads) {
    const auto saved = context->get_saved_variables();
    const auto [grad_gate, grad_up] = call_backward(grads[0], saved[0], saved[1]);
    return {grad_gate, grad_up};
  }
};

at::Tensor forward_autograd(const at::Tensor& gate, const at::Tensor& up) {
  check_arguments("swiglu", gate, up);  // apply asks for sizes
  refuse_forward_gradients("swiglu", gate, up);
  return Swiglu::apply(gate, up);
}

template <c10::DeviceType kDevice>
at::Tensor forward_autocast(const at::Tensor& gate, const at::Tensor& up) {
  const autocast::Guard<kDevice> guard;
  at::Tensor wide_gate = gate;
  at::Tensor wide_up = up;
  autocast::widen({&wide_gate, &wide_up});
  return call_forward(wide_gate, wide_up);
}

}  // namespace

at::Tensor swiglu(const at::Tensor& gate, const at::Tensor& up) {
  TORCH_CHECK_VALUE(gate.defined() && up.defined(), "swiglu: gate and up must be tensors");
  return call_forward(gate, up);
}

TORCH_LIBRARY_FRAGMENT(paperlab, m) {
  m.def("swiglu(Tensor gate, Tensor up) -> Tensor");
  m.def(
      "swiglu_backward(Tensor grad_y, Tensor gate, Tensor up) "
      "-> (Tensor grad_gate, Tensor grad_up)");
}

// Every device, so that a tensor on another one is refused by name.
TORCH_LIBRARY_IMPL(paperlab, CompositeExplicitAutograd, m) {
  m.impl("swiglu", forward_any);
  m.impl("swiglu_backward", backward_any);
}

TORCH_LIBRARY_IMPL(paperlab, Meta, m) {
  m.impl("swiglu", forward_meta);
  m.impl("swiglu_backward", backward_meta);
}

TORCH_LIBRARY_IMPL(paperlab, AutocastCPU, m) { m.impl("swiglu", forward_autocast<at::kCPU>); }

TORCH_LIBRARY_IMPL(paperlab, AutocastCUDA, m) { m.impl("swiglu", forward_autocast<at::kCUDA>); }

TORCH_LIBRARY_IMPL(paperlab, Autograd, m) {
  m.impl("swiglu", forward_autograd);
  m.impl("swiglu_backward", torch::autograd::autogradNotImplementedFallback());
}

}  // namespace paperlab::ops
