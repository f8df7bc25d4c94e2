#include "paperlab/ops/linear.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/ones.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <cstdint>
#include <optional>

#include "kernels/common/backend.h"
#include "kernels/gemm/cuda.h"
#include "kernels/gemm/gemm.h"
#include "kernels/gemm/tile.h"
#include "paperlab/ops/dispatch_rules_internal.h"
#include "paperlab/ops/kernel_dtype_internal.h"
#include "paperlab/ops/kernel_views_internal.h"
#include "paperlab/ops/parallel_bridge.h"
#include "paperlab/ops/route_internal.h"

namespace paperlab::ops {
namespace {

void check_like_x(const char* name, const at::Tensor& tensor, const at::Tensor& x) {
  TORCH_CHECK_TYPE(tensor.scalar_type() == x.scalar_type(), "linear: ", name,
                   " must be of the dtype of x (", x.scalar_type(), "), got ",
                   tensor.scalar_type());
  TORCH_CHECK_VALUE(tensor.layout() == at::kStrided, "linear: ", name,
                    " must be strided, got layout ", tensor.layout());
  TORCH_CHECK_VALUE(tensor.device() == x.device(), "linear: ", name,
                    " must be on the device of x (", x.device(), "), got ", tensor.device());
}

// Shapes and dtypes, also of tensors without data.
void check_arguments(const at::Tensor& x, const at::Tensor& weight,
                     const std::optional<at::Tensor>& bias) {
  check_kernel_dtype("linear", "x", x);
  check_like_x("x", x, x);
  TORCH_CHECK_VALUE(x.dim() >= 1, "linear: x must be [..., K], got a number");
  check_like_x("weight", weight, x);
  TORCH_CHECK_VALUE(weight.dim() == 2 && weight.sym_size(1) == x.sym_size(-1),
                    "linear: weight must be [N, ", x.sym_size(-1), "], got ", weight.sym_sizes());
  if (bias.has_value()) {
    check_like_x("bias", *bias, x);
    TORCH_CHECK_VALUE(bias->dim() == 1 && bias->sym_size(0) == weight.sym_size(0),
                      "linear: bias must be [", weight.sym_size(0), "], got ", bias->sym_sizes());
  }
}

at::Tensor new_result(const at::Tensor& x, const at::Tensor& weight) {
  c10::SymDimVector sizes(x.sym_sizes().begin(), x.sym_sizes().end());
  sizes.back() = weight.sym_size(0);
  return at::empty_symint(sizes, x.options());
}

// A matrix as the kernel reads it, and what holds its memory if that is not the tensor's.
struct Operand {
  kernels::GemmOperand view;
  at::Tensor copy;
};

// [R, K] with one stride of 1: x itself wherever possible. On a GPU lines must not lie on each
// other.
Operand operand_of(const at::Tensor& x) {
  const auto sizes = x.sizes();
  const auto strides = x.strides();
  const bool is_matrix = x.dim() == 2 && (x.device().is_cpu() || views::has_lines_apart(x));
  if (is_matrix && (sizes[1] <= 1 || strides[1] == 1)) {
    return {{x.const_data_ptr(), strides[0], 1}, {}};
  }
  if (is_matrix && (sizes[0] <= 1 || strides[0] == 1)) {
    return {{x.const_data_ptr(), 1, strides[1]}, {}};
  }
  const at::Tensor dense = x.contiguous();
  return {{dense.const_data_ptr(), sizes.back(), 1}, dense};
}

void multiply(Route route, const kernels::Gemm& problem, const at::Tensor& like) {
  if (route == Route::kCpu) {
    kernels::gemm(problem, torch_executor());
  } else if constexpr (kernels::kHasCuda) {
    on_cuda(like, kernels::gemm_cuda_workspace(problem),
            [&](void* memory, const kernels::Context& context) {
              kernels::gemm_cuda(problem, {}, memory, context);
            });
  }
}

// From so many rows of bfloat16 on LibTorch's library, which multiplies pairs, is faster.
constexpr std::int64_t kFewBFloat16Rows = 12;
static_assert(kFewBFloat16Rows <= kernels::kFewRows);

bool is_left_to_torch(const at::Tensor& x, const at::Tensor& weight, std::int64_t num_rows) {
  return x.device().is_cpu() && x.scalar_type() == at::kBFloat16 &&
         (num_rows > kFewBFloat16Rows || (weight.stride(1) != 1 && weight.size(1) > 1));
}

at::Tensor forward_any(const at::Tensor& x, const at::Tensor& weight,
                       const std::optional<at::Tensor>& bias) {
  check_arguments(x, weight, bias);
  const std::int64_t num_rows = c10::multiply_integers(x.sizes().begin(), x.sizes().end() - 1);
  const Route route = route_of("linear", x);
  if (route == Route::kTorch || is_left_to_torch(x, weight, num_rows)) {
    const autocast::Off guard;
    return at::linear(x, weight, bias).contiguous();
  }
  at::Tensor y = new_result(x, weight);
  const Operand a = operand_of(x);
  const Operand b = operand_of(weight);
  const at::Tensor dense_bias = bias.has_value() ? bias->contiguous() : at::Tensor();
  multiply(route,
           {kernel_dtype(x), num_rows, weight.size(0), weight.size(1), a.view, b.view,
            bias.has_value() ? dense_bias.const_data_ptr() : nullptr, y.mutable_data_ptr(),
            weight.size(0)},
           x);
  return y;
}

at::Tensor forward_meta(const at::Tensor& x, const at::Tensor& weight,
                        const std::optional<at::Tensor>& bias) {
  check_arguments(x, weight, bias);
  return new_result(x, weight);
}

at::Tensor call_forward(const at::Tensor& x, const at::Tensor& weight,
                        const std::optional<at::Tensor>& bias) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("paperlab::linear", "")
                             .typed<decltype(forward_any)>();
  return op.call(x, weight, bias);
}

// [rows, columns] of [..., columns].
at::Tensor as_matrix(const at::Tensor& x) {
  if (x.dim() == 2) {
    return x;
  }
  c10::SymInt rows = 1;
  for (const c10::SymInt& size : x.sym_sizes().slice(0, x.dim() - 1)) {
    rows *= size;
  }
  return x.reshape_symint({rows, x.sym_size(-1)});
}

class Linear : public torch::autograd::Function<Linear> {
 public:
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& x,
                            const at::Tensor& weight, const std::optional<at::Tensor>& bias) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    context->save_for_backward(
        {weight.requires_grad() ? x : at::Tensor(), x.requires_grad() ? weight : at::Tensor()});
    context->saved_data["adds"] = bias.has_value();
    return call_forward(x, weight, bias);
  }

  // dx = dy weight, dweight = dy^T x, dbias = the sum of dy's rows.
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 const torch::autograd::variable_list& grads) {
    const auto saved = context->get_saved_variables();
    torch::autograd::variable_list results(3);
    if (context->needs_input_grad(0)) {
      results[0] = call_forward(grads[0], saved[1].t(), std::nullopt);
    }
    if (context->needs_input_grad(1)) {
      results[1] = call_forward(as_matrix(grads[0]).t(), as_matrix(saved[0]).t(), std::nullopt);
    }
    // An argument that is absent has no number.
    if (context->saved_data["adds"].toBool() && context->needs_input_grad(2)) {
      const at::Tensor columns = as_matrix(grads[0]).t();
      results[2] = call_forward(at::ones_symint({columns.sym_size(1)}, columns.options()), columns,
                                std::nullopt);
    }
    return results;
  }
};

bool needs_grad(const at::Tensor& x, const at::Tensor& weight,
                const std::optional<at::Tensor>& bias) {
  return at::GradMode::is_enabled() && (x.requires_grad() || weight.requires_grad() ||
                                        (bias.has_value() && bias->requires_grad()));
}

at::Tensor forward_autograd(const at::Tensor& x, const at::Tensor& weight,
                            const std::optional<at::Tensor>& bias) {
  refuse_forward_gradients("linear", x, weight, bias);
  if (!needs_grad(x, weight, bias)) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    return call_forward(x, weight, bias);
  }
  check_arguments(x, weight, bias);  // apply asks for sizes
  return Linear::apply(x, weight, bias);
}

template <c10::DeviceType kDevice>
at::Tensor forward_autocast(const at::Tensor& x, const at::Tensor& weight,
                            const std::optional<at::Tensor>& bias) {
  const autocast::Guard<kDevice> guard;
  using autocast::lowered;
  return call_forward(lowered<kDevice>(x), lowered<kDevice>(weight), lowered<kDevice>(bias));
}

}  // namespace

at::Tensor linear(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias) {
  TORCH_CHECK_VALUE(x.defined() && weight.defined(), "linear: x and weight must be tensors");
  return call_forward(x, weight, bias.defined() ? std::optional(bias) : std::nullopt);
}

TORCH_LIBRARY_FRAGMENT(paperlab, m) {
  m.def("linear(Tensor x, Tensor weight, Tensor? bias=None) -> Tensor");
}

// Every device, so that a tensor on another one is refused by name.
TORCH_LIBRARY_IMPL(paperlab, CompositeExplicitAutograd, m) { m.impl("linear", forward_any); }

TORCH_LIBRARY_IMPL(paperlab, Meta, m) { m.impl("linear", forward_meta); }

TORCH_LIBRARY_IMPL(paperlab, AutocastCPU, m) { m.impl("linear", forward_autocast<at::kCPU>); }

TORCH_LIBRARY_IMPL(paperlab, AutocastCUDA, m) { m.impl("linear", forward_autocast<at::kCUDA>); }

TORCH_LIBRARY_IMPL(paperlab, Autograd, m) { m.impl("linear", forward_autograd); }

}  // namespace paperlab::ops
