#include "paperlab/ops/linear_cross_entropy.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <array>
#include <cmath>
#include <optional>
#include <string>
#include <tuple>

#include "paperlab/ops/dispatch_rules_internal.h"
#include "paperlab/ops/kernel_dtype_internal.h"
#include "paperlab/ops/linear_cross_entropy_internal.h"

namespace paperlab::ops {
namespace {

using Results = std::tuple<at::Tensor, at::Tensor>;
using Gradients = std::tuple<at::Tensor, at::Tensor, at::Tensor>;
using Wanted = std::array<bool, 3>;  // gradients of x, weight, bias
using kernels::Reduction;

constexpr char kForward[] = "linear_cross_entropy";
constexpr char kBackward[] = "linear_cross_entropy_backward";

at::ScalarType statistics_of(const at::Tensor& x) { return statistics_dtype(x.scalar_type()); }

void check_place(const char* function, const char* name, const at::Tensor& tensor,
                 const at::Tensor& x) {
  TORCH_CHECK_VALUE(tensor.layout() == at::kStrided, function, ": ", name,
                    " must be strided, got layout ", tensor.layout());
  TORCH_CHECK_VALUE(tensor.device() == x.device(), function, ": ", name,
                    " must be on the device of x (", x.device(), "), got ", tensor.device());
}

void check_like_x(const char* function, const char* name, const at::Tensor& tensor,
                  const at::Tensor& x) {
  TORCH_CHECK_TYPE(tensor.scalar_type() == x.scalar_type(), function, ": ", name,
                   " must be of the dtype of x (", x.scalar_type(), "), got ",
                   tensor.scalar_type());
  check_place(function, name, tensor, x);
}

void check_statistic(const char* name, const at::Tensor& tensor, const at::Tensor& x,
                     c10::SymIntArrayRef sizes) {
  TORCH_CHECK_TYPE(tensor.scalar_type() == statistics_of(x), kBackward, ": ", name, " must be ",
                   statistics_of(x), ", got ", tensor.scalar_type());
  check_place(kBackward, name, tensor, x);
  TORCH_CHECK_VALUE(tensor.sym_sizes() == sizes, kBackward, ": ", name, " must be ", sizes,
                    ", got ", tensor.sym_sizes());
}

Reduction reduction_of(const char* function, c10::string_view name) {
  TORCH_CHECK_VALUE(name == "mean" || name == "sum" || name == "none", function,
                    ": reduction must be \"mean\", \"sum\" or \"none\", got \"", name, "\"");
  return name == "mean" ? Reduction::kMean : name == "sum" ? Reduction::kSum : Reduction::kNone;
}

// Shapes and dtypes, also of tensors without data.
void check_tensors(const char* function, const at::Tensor& x, const at::Tensor& weight,
                   const at::Tensor& target, const std::optional<at::Tensor>& bias) {
  check_kernel_dtype(function, "x", x);
  check_like_x(function, "x", x, x);
  TORCH_CHECK_VALUE(x.dim() >= 1, function, ": x must be [..., D], got a number");
  check_like_x(function, "weight", weight, x);
  TORCH_CHECK_VALUE(
      weight.dim() == 2 && weight.sym_size(0) >= 1 && weight.sym_size(1) == x.sym_size(-1),
      function, ": weight must be [V, ", x.sym_size(-1), "] with V >= 1, got ", weight.sym_sizes());
  TORCH_CHECK_TYPE(target.scalar_type() == at::kLong, function, ": target must be int64, got ",
                   target.scalar_type());
  check_place(function, "target", target, x);
  const auto rows = x.sym_sizes().slice(0, x.dim() - 1);
  TORCH_CHECK_VALUE(target.sym_sizes() == rows, function, ": target must be ", rows, ", got ",
                    target.sym_sizes());
  if (bias.has_value()) {
    check_like_x(function, "bias", *bias, x);
    TORCH_CHECK_VALUE(bias->dim() == 1 && bias->sym_size(0) == weight.sym_size(0), function,
                      ": bias must be [", weight.sym_size(0), "], got ", bias->sym_sizes());
  }
}

void check_z_loss(const char* function, double z_loss) {
  TORCH_CHECK_VALUE(std::isfinite(z_loss) && z_loss >= 0.0, function,
                    ": z_loss must be finite and >= 0, got ", z_loss);
}

c10::SymIntArrayRef loss_sizes(const at::Tensor& target, Reduction reduction) {
  return reduction == Reduction::kNone ? target.sym_sizes() : c10::SymIntArrayRef();
}

Results new_results(const at::Tensor& x, const at::Tensor& target, Reduction reduction) {
  const auto options = x.options().dtype(statistics_of(x));
  return {at::empty_symint(loss_sizes(target, reduction), options),
          at::empty_symint({target.sym_numel()}, options)};
}

// What is not wanted is empty.
Gradients new_gradients(const at::Tensor& x, const at::Tensor& weight, const Wanted& wanted,
                        bool has_bias) {
  const auto make = [&x](bool is_wanted, c10::SymIntArrayRef sizes) {
    return is_wanted ? at::empty_symint(sizes, x.options()) : at::empty({0}, x.options());
  };
  return {make(wanted[0], x.sym_sizes()), make(wanted[1], weight.sym_sizes()),
          make(wanted[2] && has_bias, weight.sym_sizes().slice(0, 1))};
}

Results forward_any(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& target,
                    const std::optional<at::Tensor>& bias, std::int64_t ignore_index,
                    c10::string_view reduction_name, double z_loss) {
  check_tensors(kForward, x, weight, target, bias);
  const Reduction reduction = reduction_of(kForward, reduction_name);
  check_z_loss(kForward, z_loss);
  const LinearCrossEntropyProblem problem = {x,         weight, target, bias, ignore_index,
                                             reduction, z_loss};
  const Route route = route_of(kForward, x);
  check_targets(kForward, problem);
  if (route == Route::kTorch) {
    return eager::forward(problem);
  }
  Results results = new_results(x, target, reduction);
  forward_by_kernels(route, problem, std::get<0>(results), std::get<1>(results));
  return results;
}

void check_backward(const at::Tensor& grad_loss, const at::Tensor& x, const at::Tensor& weight,
                    const at::Tensor& target, const at::Tensor& lse,
                    const std::optional<at::Tensor>& bias, Reduction reduction, double z_loss) {
  check_tensors(kBackward, x, weight, target, bias);
  check_z_loss(kBackward, z_loss);
  check_statistic("grad_loss", grad_loss, x, loss_sizes(target, reduction));
  check_statistic("lse", lse, x, {target.sym_numel()});
}

Gradients backward_any(const at::Tensor& grad_loss, const at::Tensor& x, const at::Tensor& weight,
                       const at::Tensor& target, const at::Tensor& lse,
                       const std::optional<at::Tensor>& bias, std::int64_t ignore_index,
                       c10::string_view reduction_name, double z_loss, Wanted wanted) {
  const Reduction reduction = reduction_of(kBackward, reduction_name);
  check_backward(grad_loss, x, weight, target, lse, bias, reduction, z_loss);
  Gradients gradients = new_gradients(x, weight, wanted, bias.has_value());
  const LinearCrossEntropyProblem problem = {x,         weight, target, bias, ignore_index,
                                             reduction, z_loss};
  const Route route = route_of(kForward, x);
  check_targets(kBackward, problem);
  if (route == Route::kTorch) {
    eager::backward(problem, grad_loss, lse, wanted, gradients);
  } else {
    backward_by_kernels(route, problem, grad_loss, lse, wanted, gradients);
  }
  return gradients;
}

Results forward_meta(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& target,
                     const std::optional<at::Tensor>& bias, std::int64_t /*ignore_index*/,
                     c10::string_view reduction, double z_loss) {
  check_tensors(kForward, x, weight, target, bias);
  check_z_loss(kForward, z_loss);
  return new_results(x, target, reduction_of(kForward, reduction));
}

Gradients backward_meta(const at::Tensor& grad_loss, const at::Tensor& x, const at::Tensor& weight,
                        const at::Tensor& target, const at::Tensor& lse,
                        const std::optional<at::Tensor>& bias, std::int64_t /*ignore_index*/,
                        c10::string_view reduction, double z_loss, Wanted wanted) {
  check_backward(grad_loss, x, weight, target, lse, bias, reduction_of(kBackward, reduction),
                 z_loss);
  return new_gradients(x, weight, wanted, bias.has_value());
}

Results call_forward(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& target,
                     const std::optional<at::Tensor>& bias, std::int64_t ignore_index,
                     c10::string_view reduction, double z_loss) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("paperlab::linear_cross_entropy", "")
                             .typed<decltype(forward_any)>();
  return op.call(x, weight, target, bias, ignore_index, reduction, z_loss);
}

Gradients call_backward(const at::Tensor& grad_loss, const at::Tensor& x, const at::Tensor& weight,
                        const at::Tensor& target, const at::Tensor& lse,
                        const std::optional<at::Tensor>& bias, std::int64_t ignore_index,
                        c10::string_view reduction, double z_loss, Wanted wanted) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("paperlab::linear_cross_entropy_backward", "")
                             .typed<decltype(backward_any)>();
  return op.call(grad_loss, x, weight, target, lse, bias, ignore_index, reduction, z_loss, wanted);
}

class LinearCrossEntropy : public torch::autograd::Function<LinearCrossEntropy> {
 public:
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext* context,
                                                const at::Tensor& x, const at::Tensor& weight,
                                                const at::Tensor& target,
                                                const std::optional<at::Tensor>& bias,
                                                std::int64_t ignore_index,
                                                const std::string& reduction, double z_loss) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    const auto [loss, lse] = call_forward(x, weight, target, bias, ignore_index, reduction, z_loss);
    context->save_for_backward({x, weight, target, lse, bias.value_or(at::Tensor())});
    context->saved_data["ignore_index"] = ignore_index;
    context->saved_data["reduction"] = reduction;
    context->saved_data["z_loss"] = z_loss;
    context->mark_non_differentiable({lse});
    return {loss, lse};
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 const torch::autograd::variable_list& grads) {
    const auto saved = context->get_saved_variables();
    const bool has_bias = saved[4].defined();
    // An argument that is absent has no number.
    const Wanted wanted = {context->needs_input_grad(0), context->needs_input_grad(1),
                           has_bias && context->needs_input_grad(3)};
    const auto [grad_x, grad_weight, grad_bias] =
        call_backward(grads[0], saved[0], saved[1], saved[2], saved[3],
                      has_bias ? std::optional(saved[4]) : std::nullopt,
                      context->saved_data["ignore_index"].toInt(),
                      context->saved_data["reduction"].toStringView(),
                      context->saved_data["z_loss"].toDouble(), wanted);
    torch::autograd::variable_list results(7);
    results[0] = wanted[0] ? grad_x : at::Tensor();
    results[1] = wanted[1] ? grad_weight : at::Tensor();
    results[3] = wanted[2] ? grad_bias : at::Tensor();
    return results;
  }
};

bool needs_grad(const at::Tensor& x, const at::Tensor& weight,
                const std::optional<at::Tensor>& bias) {
  return at::GradMode::is_enabled() && (x.requires_grad() || weight.requires_grad() ||
                                        (bias.has_value() && bias->requires_grad()));
}

Results forward_autograd(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& target,
                         const std::optional<at::Tensor>& bias, std::int64_t ignore_index,
                         c10::string_view reduction, double z_loss) {
  check_tensors(kForward, x, weight, target, bias);  // apply asks for sizes
  refuse_forward_gradients(kForward, x, weight, bias);
  if (!needs_grad(x, weight, bias)) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    return call_forward(x, weight, target, bias, ignore_index, reduction, z_loss);
  }
  const auto results = LinearCrossEntropy::apply(x, weight, target, bias, ignore_index,
                                                 std::string(reduction), z_loss);
  return {results[0], results[1]};
}

template <c10::DeviceType kDevice>
Results forward_autocast(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& target,
                         const std::optional<at::Tensor>& bias, std::int64_t ignore_index,
                         c10::string_view reduction, double z_loss) {
  const autocast::Guard<kDevice> guard;
  using autocast::lowered;
  return call_forward(lowered<kDevice>(x), lowered<kDevice>(weight), target, lowered<kDevice>(bias),
                      ignore_index, reduction, z_loss);
}

}  // namespace

LinearCrossEntropyResult linear_cross_entropy(const at::Tensor& x, const at::Tensor& weight,
                                              const at::Tensor& target,
                                              const LinearCrossEntropyOptions& options) {
  TORCH_CHECK_VALUE(x.defined() && weight.defined() && target.defined(), kForward,
                    ": x, weight and target must be tensors");
  const auto& [bias, ignore_index, reduction, z_loss] = options;
  const auto [loss, lse] =
      call_forward(x, weight, target, bias.defined() ? std::optional(bias) : std::nullopt,
                   ignore_index, c10::string_view(reduction.data(), reduction.size()), z_loss);
  return {loss, lse};
}

TORCH_LIBRARY_FRAGMENT(paperlab, m) {
  m.def(
      "linear_cross_entropy(Tensor x, Tensor weight, Tensor target, Tensor? bias=None, "
      "int ignore_index=-100, str reduction=\"mean\", float z_loss=0.0) "
      "-> (Tensor loss, Tensor lse)");
  m.def(
      "linear_cross_entropy_backward(Tensor grad_loss, Tensor x, Tensor weight, Tensor target, "
      "Tensor lse, Tensor? bias=None, int ignore_index=-100, str reduction=\"mean\", "
      "float z_loss=0.0, bool[3] wanted=[True, True, True]) "
      "-> (Tensor grad_x, Tensor grad_weight, Tensor grad_bias)");
}

// Every device, so that a tensor on another one is refused by name.
TORCH_LIBRARY_IMPL(paperlab, CompositeExplicitAutograd, m) {
  m.impl("linear_cross_entropy", forward_any);
  m.impl("linear_cross_entropy_backward", backward_any);
}

TORCH_LIBRARY_IMPL(paperlab, Meta, m) {
  m.impl("linear_cross_entropy", forward_meta);
  m.impl("linear_cross_entropy_backward", backward_meta);
}

TORCH_LIBRARY_IMPL(paperlab, AutocastCPU, m) {
  m.impl("linear_cross_entropy", forward_autocast<at::kCPU>);
}

TORCH_LIBRARY_IMPL(paperlab, AutocastCUDA, m) {
  m.impl("linear_cross_entropy", forward_autocast<at::kCUDA>);
}

TORCH_LIBRARY_IMPL(paperlab, Autograd, m) {
  m.impl("linear_cross_entropy", forward_autograd);
  m.impl("linear_cross_entropy_backward", torch::autograd::autogradNotImplementedFallback());
}

}  // namespace paperlab::ops
