#include "paperlab/ops/rope.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "kernels/common/backend.h"
#include "kernels/rope/cuda.h"
#include "kernels/rope/rope.h"
#include "paperlab/ops/dispatch_rules_internal.h"
#include "paperlab/ops/kernel_dtype_internal.h"
#include "paperlab/ops/parallel_bridge.h"
#include "paperlab/ops/route_internal.h"
#include "paperlab/ops/row_forms_internal.h"

namespace paperlab::ops {
namespace {

at::ScalarType table_dtype(const at::Tensor& x) { return statistics_dtype(x.scalar_type()); }

void check_table(const char* name, const at::Tensor& table, const at::Tensor& x) {
  TORCH_CHECK_TYPE(table.scalar_type() == table_dtype(x), "rope: ", name, " must be ",
                   table_dtype(x), " for an x of ", x.scalar_type(), ", got ", table.scalar_type());
  TORCH_CHECK_VALUE(table.layout() == at::kStrided, "rope: ", name, " must be strided, got layout ",
                    table.layout());
  TORCH_CHECK_VALUE(table.device() == x.device(), "rope: ", name, " must be on the device of x (",
                    x.device(), "), got ", table.device());
}

// Shapes and dtypes, also of tensors without data.
void check_arguments(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin) {
  check_kernel_dtype("rope", "x", x);
  TORCH_CHECK_VALUE(x.layout() == at::kStrided, "rope: x must be strided, got layout ", x.layout());
  TORCH_CHECK_VALUE(x.dim() == 4, "rope: x must be [B, T, H, D], got ", x.sym_sizes());
  check_table("cos", cos, x);
  check_table("sin", sin, x);
  TORCH_CHECK_VALUE(cos.dim() == 3 && cos.sym_size(1) == x.sym_size(1) &&
                        (cos.sym_size(0) == 1 || cos.sym_size(0) == x.sym_size(0)) &&
                        2 * cos.sym_size(2) <= x.sym_size(3),
                    "rope: cos must be [B or 1, T, R/2] with R <= D for an x of ", x.sym_sizes(),
                    ", got ", cos.sym_sizes());
  TORCH_CHECK_VALUE(sin.sym_sizes() == cos.sym_sizes(), "rope: sin must be of the shape of cos ",
                    cos.sym_sizes(), ", got ", sin.sym_sizes());
}

struct Halves {
  at::Tensor low;
  at::Tensor high;
};

// Lanes i and i + R/2 of x in the dtype of `table` [B or 1, T, R/2].
Halves halves(const at::Tensor& x, const at::Tensor& table) {
  const c10::SymInt half = table.sym_size(2);
  return {x.narrow_symint(3, 0, half).to(table.scalar_type()),
          x.narrow_symint(3, half, half).to(table.scalar_type())};
}

at::Tensor forward_any(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin,
                       bool inverse) {
  check_arguments(x, cos, sin);
  const Route route = route_of("rope", x);
  if (route == Route::kTorch) {
    return forms::rope(x, cos, sin, inverse);
  }
  at::Tensor out = at::empty(x.sizes(), x.options());
  const at::Tensor heads = x.stride(3) == 1 ? x : x.contiguous();
  const at::Tensor dense_cos = cos.contiguous();
  const at::Tensor dense_sin = sin.contiguous();
  kernels::Rope problem{{heads.const_data_ptr(), kernel_dtype(x)},
                        cos.size(2),
                        cos.size(0),
                        dense_cos.const_data_ptr(),
                        dense_sin.const_data_ptr(),
                        inverse};
  for (int d = 0; d < 4; ++d) {
    problem.x.size[d] = heads.size(d);
    problem.x.stride[d] = d == 3 ? 1 : heads.stride(d);
  }
  if (route == Route::kCpu) {
    kernels::rope(problem, out.mutable_data_ptr(), torch_executor());
  } else if constexpr (kernels::kHasCuda) {
    const CudaCall cuda(x);
    kernels::rope_cuda(problem, out.mutable_data_ptr(), cuda.context);
  }
  return out;
}

at::Tensor forward_meta(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin,
                        bool /*inverse*/) {
  check_arguments(x, cos, sin);
  return at::empty_symint(x.sym_sizes(), x.options());
}

at::Tensor call_forward(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin,
                        bool inverse) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("paperlab::rope", "")
                             .typed<decltype(forward_any)>();
  return op.call(x, cos, sin, inverse);
}

// The sum of low + high products over heads, and over batch rows that shared one table.
at::Tensor table_gradient(const at::Tensor& products, const at::Tensor& table) {
  const at::Tensor of_rows = products.sum(2);
  return table.sym_size(0) == of_rows.sym_size(0) ? of_rows : of_rows.sum(0, /*keepdim=*/true);
}

class Rope : public torch::autograd::Function<Rope> {
 public:
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& x,
                            const at::Tensor& cos, const at::Tensor& sin, bool inverse) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    // x is kept for the gradients of tables alone, which a model does not learn.
    const bool keeps_x = cos.requires_grad() || sin.requires_grad();
    context->save_for_backward({cos, sin, keeps_x ? x : at::Tensor()});
    context->saved_data["inverse"] = inverse;
    return call_forward(x, cos, sin, inverse);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 const torch::autograd::variable_list& grads) {
    const auto saved = context->get_saved_variables();
    const at::Tensor& cos = saved[0];
    const at::Tensor& sin = saved[1];
    const bool inverse = context->saved_data["inverse"].toBool();
    torch::autograd::variable_list results(4);
    if (context->needs_input_grad(0)) {
      results[0] = call_forward(grads[0], cos, sin, !inverse);
    }
    if (!context->needs_input_grad(1) && !context->needs_input_grad(2)) {
      return results;
    }
    const auto [grad_low, grad_high] = halves(grads[0], cos);
    const auto [low, high] = halves(saved[2], cos);
    results[1] = table_gradient(grad_low * low + grad_high * high, cos);
    const at::Tensor cross =
        inverse ? grad_low * high - grad_high * low : grad_high * low - grad_low * high;
    results[2] = table_gradient(cross, sin);
    return results;
  }
};

at::Tensor forward_autograd(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin,
                            bool inverse) {
  refuse_forward_gradients("rope", x, cos, sin);
  const bool records = at::GradMode::is_enabled() &&
                       (x.requires_grad() || cos.requires_grad() || sin.requires_grad());
  if (!records) {
    const at::AutoDispatchBelowADInplaceOrView guard;  // a decoding step spares the node
    return call_forward(x, cos, sin, inverse);
  }
  check_arguments(x, cos, sin);  // apply asks for sizes
  return Rope::apply(x, cos, sin, inverse);
}

// Tables follow x, which may be of fewer digits than they.
template <c10::DeviceType kDevice>
at::Tensor forward_autocast(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin,
                            bool inverse) {
  const autocast::Guard<kDevice> guard;
  return call_forward(x, autocast::cast(cos, table_dtype(x)), autocast::cast(sin, table_dtype(x)),
                      inverse);
}

}  // namespace

at::Tensor rope(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin, bool inverse) {
  TORCH_CHECK_VALUE(x.defined() && cos.defined() && sin.defined(),
                    "rope: x, cos and sin must be tensors");
  return call_forward(x, cos, sin, inverse);
}

TORCH_LIBRARY_FRAGMENT(paperlab, m) {
  m.def("rope(Tensor x, Tensor cos, Tensor sin, bool inverse=False) -> Tensor");
}

// Every device, so that a tensor on another one is refused by name.
TORCH_LIBRARY_IMPL(paperlab, CompositeExplicitAutograd, m) { m.impl("rope", forward_any); }

TORCH_LIBRARY_IMPL(paperlab, Meta, m) { m.impl("rope", forward_meta); }

TORCH_LIBRARY_IMPL(paperlab, AutocastCPU, m) { m.impl("rope", forward_autocast<at::kCPU>); }

TORCH_LIBRARY_IMPL(paperlab, AutocastCUDA, m) { m.impl("rope", forward_autocast<at::kCUDA>); }

TORCH_LIBRARY_IMPL(paperlab, Autograd, m) { m.impl("rope", forward_autograd); }

}  // namespace paperlab::ops
