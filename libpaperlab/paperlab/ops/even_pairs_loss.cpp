#include "paperlab/ops/even_pairs_loss.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/where.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <cmath>
#include <cstddef>
#include <limits>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "kernels/common/backend.h"
#include "kernels/one_layer_fold/cuda.h"
#include "kernels/one_layer_fold/one_layer_fold.h"
#include "paperlab/ops/dispatch_rules_internal.h"
#include "paperlab/ops/even_pairs_loss_torch_internal.h"
#include "paperlab/ops/parallel_bridge.h"
#include "paperlab/ops/route_internal.h"

namespace paperlab::ops {
namespace {

constexpr std::int64_t kLongest = 24;
constexpr char kLoss[] = "even_pairs_loss";

// Shapes and dtypes; also of tensors without data, whose sizes may be symbols.
void check_arguments(const at::Tensor& u, const at::Tensor& w, double attention_scale) {
  const auto is_float = [](const at::Tensor& x) {
    return x.scalar_type() == at::kDouble || x.scalar_type() == at::kFloat;
  };
  TORCH_CHECK_TYPE(is_float(u), "even_pairs_loss: u must be float32 or float64, got ",
                   u.scalar_type());
  TORCH_CHECK_TYPE(w.scalar_type() == u.scalar_type(),
                   "even_pairs_loss: w must be of the dtype of "
                   "u (",
                   u.scalar_type(), "), got ", w.scalar_type());
  TORCH_CHECK_VALUE(u.layout() == at::kStrided, "even_pairs_loss: u must be strided, got layout ",
                    u.layout());
  TORCH_CHECK_VALUE(w.layout() == at::kStrided, "even_pairs_loss: w must be strided, got layout ",
                    w.layout());
  TORCH_CHECK_VALUE(w.device() == u.device(), "even_pairs_loss: w must be on the device of u (",
                    u.device(), "), got ", w.device());
  const c10::SymInt width = u.dim() == 1 ? u.sym_size(0) : c10::SymInt(0);
  TORCH_CHECK_VALUE(width >= 2 && width <= 2 * kLongest && width % 2 == 0,
                    "even_pairs_loss: u must be [2 * max_length] with max_length in 1..", kLongest,
                    ", got ", u.sym_sizes());
  TORCH_CHECK_VALUE(w.dim() == 2 && w.sym_size(0) == width && w.sym_size(1) == width,
                    "even_pairs_loss: w must be [", width, ", ", width, "], got ", w.sym_sizes());
  TORCH_CHECK_VALUE(std::isfinite(attention_scale) && attention_scale > 0.0,
                    "even_pairs_loss: attention_scale must be finite and > 0, got ",
                    attention_scale);
}

kernels::FoldPlan even_pairs_plan(int max_length) {
  std::vector<kernels::AffineGroup> groups;
  for (int length = 1; length <= max_length; ++length) {
    groups.push_back(kernels::even_pairs_group(length, 0));
    groups.push_back(kernels::even_pairs_group(length, 1));
  }
  return kernels::FoldPlan(std::move(groups));
}

// u and w as float64 in the kernel's layout: the keys of a query are contiguous.
struct Parameters {
  std::vector<double> u;
  std::vector<double> w;
  double attention_scale;

  kernels::OneLayerParameters view() const {
    return {static_cast<int>(u.size() / 2), attention_scale, u.data(), w.data()};
  }
};

void check_value(double value, const char* name) {
  TORCH_CHECK_VALUE(std::isfinite(value), "even_pairs_loss: ", name, " must be finite, got ",
                    value);
}

template <class T>
Parameters copied(const at::Tensor& u, const at::Tensor& w, double attention_scale) {
  const auto width = static_cast<std::size_t>(u.size(0));
  Parameters out{std::vector<double>(width), std::vector<double>(width * width), attention_scale};
  for (std::size_t i = 0; i < width; ++i) {
    out.u[i] = u.const_data_ptr<T>()[static_cast<std::int64_t>(i) * u.stride(0)];
    check_value(out.u[i], "u");
  }
  for (std::size_t i = 0; i < width * width; ++i) {
    const auto query = static_cast<std::int64_t>(i / width);
    const auto key = static_cast<std::int64_t>(i % width);
    out.w[i] = w.const_data_ptr<T>()[key * w.stride(0) + query * w.stride(1)];
    check_value(out.w[i], "w");
  }
  return out;
}

Parameters parameters_of(const at::Tensor& u, const at::Tensor& w, double attention_scale) {
  return u.scalar_type() == at::kDouble ? copied<double>(u, w, attention_scale)
                                        : copied<float>(u, w, attention_scale);
}

// `x` is new and contiguous.
template <class F>
void fill(const at::Tensor& x, F value) {
  for (std::int64_t i = 0; i < x.numel(); ++i) {
    if (x.scalar_type() == at::kDouble) {
      x.mutable_data_ptr<double>()[i] = value(i);
    } else {
      x.mutable_data_ptr<float>()[i] = static_cast<float>(value(i));
    }
  }
}

at::Tensor new_like(const at::Tensor& x) {
  return at::empty_like(x, x.options(), at::MemoryFormat::Contiguous);
}

// The values of u and w; those on a GPU are not waited for (with_values_of).
void check_values(const at::Tensor& u, const at::Tensor& w) {
  for (const auto& [name, x] : {std::pair("u", &u), {"w", &w}}) {
    TORCH_CHECK_VALUE(!x->is_cpu() || x->isfinite().all().item<bool>(), "even_pairs_loss: ", name,
                      " must be finite, got nan or infinity");
  }
}

// `result`, or on a GPU NaN in its place if u or w is refused.
at::Tensor with_values_of(const at::Tensor& u, const at::Tensor& w, const at::Tensor& result) {
  if (u.is_cpu()) {
    return result;
  }
  const at::Tensor is_right = u.isfinite().all().logical_and(w.isfinite().all());
  return at::where(is_right, result, std::numeric_limits<double>::quiet_NaN());
}

// u and w as float64 in the kernel's layout, where they lie.
struct DeviceParameters {
  DeviceParameters(const at::Tensor& of_u, const at::Tensor& of_w, double scale)
      : u(of_u.to(at::kDouble).contiguous()),
        w(of_w.t().to(at::kDouble).contiguous()),
        attention_scale(scale) {}

  kernels::OneLayerParameters view() const {
    return {static_cast<int>(u.size(0) / 2), attention_scale, u.const_data_ptr<double>(),
            w.const_data_ptr<double>()};
  }

  at::Tensor u;
  at::Tensor w;  // [queries, keys]
  double attention_scale;
};

at::Tensor loss_on_cuda(const at::Tensor& u, const at::Tensor& w, double attention_scale) {
  static_assert(sizeof(kernels::OneLayerEvaluation) == 4 * sizeof(double));
  static_assert(offsetof(kernels::OneLayerEvaluation, loss) == 0);
  const DeviceParameters parameters(u, w, attention_scale);
  const at::Tensor evaluation = at::empty({4}, parameters.u.options());
  if constexpr (kernels::kHasCuda) {
    const kernels::OneLayerParameters view = parameters.view();
    auto* out = static_cast<kernels::OneLayerEvaluation*>(evaluation.mutable_data_ptr());
    on_cuda(u, kernels::even_pairs_cuda_workspace(view.max_length),
            [&](void* memory, const kernels::Context& context) {
              kernels::even_pairs_evaluate_cuda(view, out, memory, context);
            });
  }
  return evaluation.select(0, 0).to(u.scalar_type(), /*non_blocking=*/false, /*copy=*/true);
}

std::tuple<at::Tensor, at::Tensor> backward_on_cuda(const at::Tensor& grad, const at::Tensor& u,
                                                    const at::Tensor& w, double attention_scale) {
  const DeviceParameters parameters(u, w, attention_scale);
  const at::Tensor grad_u = new_like(parameters.u);
  const at::Tensor grad_w = new_like(parameters.w);
  if constexpr (kernels::kHasCuda) {
    const kernels::OneLayerParameters view = parameters.view();
    const kernels::OneLayerGradient to = {grad_u.mutable_data_ptr<double>(),
                                          grad_w.mutable_data_ptr<double>()};
    on_cuda(u, kernels::even_pairs_cuda_workspace(view.max_length),
            [&](void* memory, const kernels::Context& context) {
              kernels::even_pairs_cuda(view, to, memory, context);
            });
  }
  const at::Tensor scale = grad.to(at::kDouble);
  return {(scale * grad_u).to(u.scalar_type()),
          (scale * grad_w.t()).to(w.scalar_type()).contiguous()};
}

at::Tensor loss_any(const at::Tensor& u, const at::Tensor& w, double attention_scale) {
  check_arguments(u, w, attention_scale);
  const Route route = route_of(kLoss, u, "u");
  if (route != Route::kCpu) {
    check_values(u, w);
    return with_values_of(u, w,
                          route == Route::kCuda ? loss_on_cuda(u, w, attention_scale)
                                                : forms::even_pairs_loss(u, w, attention_scale));
  }
  const Parameters parameters = parameters_of(u, w, attention_scale);
  kernels::FoldPlan plan = even_pairs_plan(parameters.view().max_length);
  const double loss =
      kernels::one_layer_fold_evaluate(plan, parameters.view(), torch_executor()).loss;
  at::Tensor out = at::empty({}, u.options());
  fill(out, [=](std::int64_t) { return loss; });
  return out;
}

void check_grad(const at::Tensor& grad, const at::Tensor& u) {
  TORCH_CHECK_VALUE(grad.dim() == 0, "even_pairs_loss_backward: grad must be [], got ",
                    grad.sym_sizes());
  TORCH_CHECK_VALUE(grad.device() == u.device(),
                    "even_pairs_loss_backward: grad must be on the device of u (", u.device(),
                    "), got ", grad.device());
  TORCH_CHECK_TYPE(grad.scalar_type() == u.scalar_type(),
                   "even_pairs_loss_backward: grad must be of the dtype of u, got ",
                   grad.scalar_type());
}

std::tuple<at::Tensor, at::Tensor> backward_any(const at::Tensor& grad, const at::Tensor& u,
                                                const at::Tensor& w, double attention_scale) {
  check_arguments(u, w, attention_scale);
  check_grad(grad, u);
  const Route route = route_of(kLoss, u, "u");
  if (route != Route::kCpu) {
    check_values(u, w);
    const auto [grad_u, grad_w] =
        route == Route::kCuda ? backward_on_cuda(grad, u, w, attention_scale)
                              : forms::even_pairs_loss_backward(grad, u, w, attention_scale);
    return {with_values_of(u, w, grad_u), with_values_of(u, w, grad_w)};
  }
  const Parameters parameters = parameters_of(u, w, attention_scale);
  const std::size_t width = parameters.u.size();
  std::vector<double> grad_u(width);
  std::vector<double> grad_w(width * width);
  kernels::FoldPlan plan = even_pairs_plan(parameters.view().max_length);
  kernels::one_layer_fold(plan, parameters.view(), {grad_u.data(), grad_w.data()},
                          torch_executor());
  const double scale = grad.item<double>();
  auto out = std::make_tuple(new_like(u), new_like(w));
  fill(std::get<0>(out),
       [&](std::int64_t i) { return scale * grad_u[static_cast<std::size_t>(i)]; });
  fill(std::get<1>(out), [&](std::int64_t i) {
    const auto key_query = static_cast<std::size_t>(i);
    return scale * grad_w[key_query % width * width + key_query / width];
  });
  return out;
}

at::Tensor loss_meta(const at::Tensor& u, const at::Tensor& w, double attention_scale) {
  check_arguments(u, w, attention_scale);
  return at::empty({}, u.options());
}

std::tuple<at::Tensor, at::Tensor> backward_meta(const at::Tensor& grad, const at::Tensor& u,
                                                 const at::Tensor& w, double attention_scale) {
  check_arguments(u, w, attention_scale);
  check_grad(grad, u);
  return {new_like(u), new_like(w)};
}

at::Tensor call_loss(const at::Tensor& u, const at::Tensor& w, double attention_scale) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("paperlab::even_pairs_loss", "")
                             .typed<decltype(loss_any)>();
  return op.call(u, w, attention_scale);
}

std::tuple<at::Tensor, at::Tensor> call_backward(const at::Tensor& grad, const at::Tensor& u,
                                                 const at::Tensor& w, double attention_scale) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("paperlab::even_pairs_loss_backward", "")
                             .typed<decltype(backward_any)>();
  return op.call(grad, u, w, attention_scale);
}

class EvenPairsLoss : public torch::autograd::Function<EvenPairsLoss> {
 public:
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& u,
                            const at::Tensor& w, double attention_scale) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    context->save_for_backward({u, w});
    context->saved_data["attention_scale"] = attention_scale;
    return call_loss(u, w, attention_scale);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list grads) {
    const auto saved = context->get_saved_variables();
    auto [grad_u, grad_w] = call_backward(grads[0], saved[0], saved[1],
                                          context->saved_data["attention_scale"].toDouble());
    return {grad_u, grad_w, at::Tensor()};
  }
};

at::Tensor loss_autograd(const at::Tensor& u, const at::Tensor& w, double attention_scale) {
  check_arguments(u, w, attention_scale);  // apply asks for sizes
  refuse_forward_gradients(kLoss, u, w);
  return EvenPairsLoss::apply(u, w, attention_scale);
}

// In the wider dtype, at least float32.
template <c10::DeviceType kDevice>
at::Tensor loss_autocast(const at::Tensor& u, const at::Tensor& w, double attention_scale) {
  const autocast::Guard<kDevice> guard;
  const bool is_double = u.scalar_type() == at::kDouble || w.scalar_type() == at::kDouble;
  const at::ScalarType dtype = is_double ? at::kDouble : at::kFloat;
  return call_loss(autocast::cast(u, dtype), autocast::cast(w, dtype), attention_scale);
}

}  // namespace

at::Tensor even_pairs_loss(const at::Tensor& u, const at::Tensor& w, double attention_scale) {
  return call_loss(u, w, attention_scale);
}

TORCH_LIBRARY(paperlab, m) {
  m.def("even_pairs_loss(Tensor u, Tensor w, float attention_scale=2.0) -> Tensor");
  m.def(
      "even_pairs_loss_backward(Tensor grad, Tensor u, Tensor w, float attention_scale) "
      "-> (Tensor grad_u, Tensor grad_w)");
}

// Every device, so that a tensor on another one is refused by name.
TORCH_LIBRARY_IMPL(paperlab, CompositeExplicitAutograd, m) {
  m.impl("even_pairs_loss", loss_any);
  m.impl("even_pairs_loss_backward", backward_any);
}

TORCH_LIBRARY_IMPL(paperlab, Meta, m) {
  m.impl("even_pairs_loss", loss_meta);
  m.impl("even_pairs_loss_backward", backward_meta);
}

TORCH_LIBRARY_IMPL(paperlab, AutocastCPU, m) { m.impl("even_pairs_loss", loss_autocast<at::kCPU>); }

TORCH_LIBRARY_IMPL(paperlab, AutocastCUDA, m) {
  m.impl("even_pairs_loss", loss_autocast<at::kCUDA>);
}

TORCH_LIBRARY_IMPL(paperlab, Autograd, m) {
  m.impl("even_pairs_loss", loss_autograd);
  m.impl("even_pairs_loss_backward", torch::autograd::autogradNotImplementedFallback());
}

}  // namespace paperlab::ops
