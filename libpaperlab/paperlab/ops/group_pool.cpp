#include "paperlab/ops/group_pool.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <cmath>
#include <string>
#include <tuple>
#include <utility>

#include "kernels/group_pool/tile.h"
#include "paperlab/ops/dispatch_rules_internal.h"
#include "paperlab/ops/group_pool_internal.h"
#include "paperlab/ops/kernel_dtype_internal.h"
#include "paperlab/ops/route_internal.h"
#include "paperlab/ops/tensor_checks_internal.h"

namespace paperlab::ops {
namespace {

using checks::check_has_shape;
using checks::check_is_like;
using checks::check_is_plain;

using pooling::Arguments;
using pooling::core_shape;
using pooling::Gradients;
using pooling::has_evaluator;
using pooling::Pooled;

constexpr char kForward[] = "group_pool";
constexpr char kBackward[] = "group_pool_backward";
constexpr char kInto[] = "group_pool_into";

void check_options(const Arguments& in) {
  TORCH_CHECK_VALUE(in.kind == "attention" || in.kind == "mean" || in.kind == "max", in.function,
                    ": kind must be \"attention\", \"mean\" or \"max\", got \"", in.kind, "\"");
  TORCH_CHECK_VALUE(in.group >= 1, in.function, ": group must be >= 1, got ", in.group);
  TORCH_CHECK_VALUE(in.first >= 0, in.function, ": first must be >= 0, got ", in.first);
  TORCH_CHECK_VALUE(!in.scale.has_value() || std::isfinite(*in.scale), in.function,
                    ": scale must be finite, got ", *in.scale);
}

void check_keys(const Arguments& in) {
  check_is_plain(in.function, "key", in.key);
  check_kernel_dtype(in.function, "key", in.key);
  TORCH_CHECK_VALUE(
      in.key.dim() == 4 && in.key.sym_size(3) >= 1 && in.key.sym_size(3) <= kernels::kMaxPoolDim,
      in.function, ": key must be [B, G, S, D] with D in 1..", kernels::kMaxPoolDim, ", got ",
      in.key.sym_sizes());
  check_is_like(in.function, "value", in.value, in.key, in.key.scalar_type(), "key");
  check_has_shape(in.function, "value", in.value, in.key.sym_sizes().vec());
  if (in.start.defined()) {
    check_is_like(in.function, "start", in.start, in.key, at::kLong, "key");
    check_has_shape(in.function, "start", in.start, {in.key.sym_size(0)});
  }
}

// "mean" and "max" do not look at the query.
void check_query(const Arguments& in) {
  if (!has_evaluator(in)) {
    return;
  }
  check_is_like(in.function, "query", in.query, in.key, in.key.scalar_type(), "key");
  const c10::SymIntArrayRef key = in.key.sym_sizes();
  const bool is_query = in.query.dim() == 4 && in.query.sym_size(0) == key[0] &&
                        in.query.sym_size(2) <= key[2] && in.query.sym_size(3) == key[3];
  TORCH_CHECK_VALUE(is_query, in.function, ": query must be [", key[0], ", H, T, ", key[3],
                    "] with T <= ", key[2], ", got ", in.query.sym_sizes());
  const c10::SymInt heads = in.query.sym_size(1);
  const bool divides = key[1] == 0 ? heads == 0 : heads % key[1] == 0;
  TORCH_CHECK_VALUE(divides, in.function,
                    ": query must be [B, H, T, D] with H a multiple of key's ", key[1],
                    " heads, got ", in.query.sym_sizes());
}

void check_arguments(const Arguments& in) {
  check_options(in);
  check_keys(in);
  check_query(in);
}

Pooled new_results(const Arguments& in) {
  const checks::Shape shape = core_shape(in);
  return {at::empty_symint(shape, in.key.options()), at::empty_symint(shape, in.key.options())};
}

Gradients new_gradients(const Arguments& in) {
  const at::TensorOptions options = in.key.options();
  return {
      has_evaluator(in) ? at::empty_symint(in.query.sym_sizes(), options) : at::empty({0}, options),
      at::empty_symint(in.key.sym_sizes(), options),
      at::empty_symint(in.value.sym_sizes(), options)};
}

// Tensors without memory, or without elements on a GPU, go through LibTorch's operations.
Route route_for(const Arguments& in) {
  const bool is_plain = checks::has_memory(in.key) && (in.key.is_cpu() || in.key.numel() > 0);
  return is_plain ? route_of(kForward, in.key, "key") : Route::kTorch;
}

void pool_into(const Arguments& in, const at::Tensor& core_key, const at::Tensor& core_value) {
  const Route route = route_for(in);
  if (route == Route::kTorch) {
    pooling::pool_torch(in, core_key, core_value);
  } else {
    pooling::pool_by_kernel(route, in, core_key, core_value);
  }
}

Pooled pool_any(const Arguments& in) {
  check_arguments(in);
  const auto [core_key, core_value] = new_results(in);
  pool_into(in, core_key, core_value);
  return {core_key, core_value};
}

Pooled pool_meta(const Arguments& in) {
  check_arguments(in);
  return new_results(in);
}

void check_backward(const Arguments& in, const at::Tensor& grad_key, const at::Tensor& grad_value) {
  check_arguments(in);
  for (const auto& [name, x] :
       {std::pair("grad_core_key", &grad_key), {"grad_core_value", &grad_value}}) {
    check_is_like(in.function, name, *x, in.key, in.key.scalar_type(), "key");
    check_has_shape(in.function, name, *x, core_shape(in));
  }
}

Gradients backward_meta(const Arguments& in, const at::Tensor& grad_key,
                        const at::Tensor& grad_value) {
  check_backward(in, grad_key, grad_value);
  return new_gradients(in);
}

Gradients backward_any(const Arguments& in, const at::Tensor& grad_key,
                       const at::Tensor& grad_value) {
  check_backward(in, grad_key, grad_value);
  const Route route = route_for(in);
  if (route == Route::kTorch) {
    return pooling::pool_backward_torch(in, grad_key, grad_value);
  }
  Gradients gradients = new_gradients(in);
  pooling::pool_backward_by_kernel(route, in, grad_key, grad_value, gradients);
  return gradients;
}

// The one place that knows the order of the schema.
template <auto kKernel>
Pooled unpacked(const std::optional<at::Tensor>& query, const at::Tensor& key,
                const at::Tensor& value, std::int64_t group, std::int64_t first,
                const std::optional<at::Tensor>& start, c10::string_view kind, bool per_kv_head,
                std::optional<double> scale) {
  return kKernel({kForward, query.value_or(at::Tensor()), key, value, group, first,
                  start.value_or(at::Tensor()), std::string(kind), per_kv_head, scale});
}

template <auto kKernel>
Gradients unpacked_backward(const at::Tensor& grad_key, const at::Tensor& grad_value,
                            const std::optional<at::Tensor>& query, const at::Tensor& key,
                            const at::Tensor& value, std::int64_t group, std::int64_t first,
                            const std::optional<at::Tensor>& start, c10::string_view kind,
                            bool per_kv_head, std::optional<double> scale) {
  return kKernel({kBackward, query.value_or(at::Tensor()), key, value, group, first,
                  start.value_or(at::Tensor()), std::string(kind), per_kv_head, scale},
                 grad_key, grad_value);
}

std::optional<at::Tensor> optional_of(const at::Tensor& x) {
  return x.defined() ? std::optional<at::Tensor>(x) : std::nullopt;
}

Pooled call(const Arguments& in) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("paperlab::group_pool", "")
                             .typed<decltype(unpacked<pool_any>)>();
  return op.call(optional_of(in.query), in.key, in.value, in.group, in.first, optional_of(in.start),
                 in.kind, in.per_kv_head, in.scale);
}

Gradients call_backward(const Arguments& in, const at::Tensor& grad_key,
                        const at::Tensor& grad_value) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("paperlab::group_pool_backward", "")
                             .typed<decltype(unpacked_backward<backward_any>)>();
  return op.call(grad_key, grad_value, optional_of(in.query), in.key, in.value, in.group, in.first,
                 optional_of(in.start), in.kind, in.per_kv_head, in.scale);
}

class GroupPool : public torch::autograd::Function<GroupPool> {
 public:
  // The tensors with gradients stand apart because autograd looks at direct arguments alone.
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext* context,
                                                const std::optional<at::Tensor>& /*query*/,
                                                const at::Tensor& /*key*/,
                                                const at::Tensor& /*value*/, const Arguments& in) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    const auto [core_key, core_value] = call(in);
    context->set_materialize_grads(false);
    context->save_for_backward({in.query, in.key, in.value, in.start});
    context->saved_data["group"] = in.group;
    context->saved_data["first"] = in.first;
    context->saved_data["kind"] = in.kind;
    context->saved_data["per_kv_head"] = in.per_kv_head;
    context->saved_data["scale"] = in.scale;
    return {core_key, core_value};
  }

  // Of a query that is given and not looked at.
  static at::Tensor zeros_of(const at::Tensor& query) {
    return query.defined() && query.requires_grad()
               ? at::zeros_symint(query.sym_sizes(), query.options())
               : at::Tensor();
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 const torch::autograd::variable_list& grads) {
    if (!grads[0].defined() && !grads[1].defined()) {
      return torch::autograd::variable_list(4);
    }
    const auto saved = context->get_saved_variables();
    const Arguments in = {kBackward,
                          saved[0],
                          saved[1],
                          saved[2],
                          context->saved_data["group"].toInt(),
                          context->saved_data["first"].toInt(),
                          saved[3],
                          context->saved_data["kind"].toStringRef(),
                          context->saved_data["per_kv_head"].toBool(),
                          context->saved_data["scale"].toOptional<double>()};
    const auto defined = [&in](const at::Tensor& grad) {
      return grad.defined() ? grad : at::zeros_symint(core_shape(in), in.key.options());
    };
    const auto [query, key, value] = call_backward(in, defined(grads[0]), defined(grads[1]));
    return {has_evaluator(in) ? query : zeros_of(saved[0]), key, value, at::Tensor()};
  }
};

Pooled pool_autograd(const Arguments& in) {
  refuse_forward_gradients(in.function, in.query, in.key, in.value);
  check_arguments(in);  // apply asks for sizes, which not every tensor has
  const auto results = GroupPool::apply(optional_of(in.query), in.key, in.value, in);
  return {results[0], results[1]};
}

// As attention: in autocast's dtype; float64 stays.
template <c10::DeviceType kDevice>
Pooled pool_autocast(const Arguments& in) {
  const autocast::Guard<kDevice> guard;
  Arguments lower = in;
  for (at::Tensor* x : {&lower.query, &lower.key, &lower.value}) {
    *x = autocast::lowered<kDevice>(*x);
  }
  return call(lower);
}

Arguments arguments_of(const char* function, const at::Tensor& query, const at::Tensor& key,
                       const at::Tensor& value, const GroupPoolOptions& options) {
  for (const auto& [name, x] : {std::pair("key", &key), {"value", &value}}) {
    TORCH_CHECK_VALUE(x->defined(), function, ": ", name, " must be a tensor, got none");
  }
  return {function,
          query,
          key,
          value,
          options.group,
          options.first,
          options.start,
          std::string(options.kind),
          options.per_kv_head,
          options.scale};
}

void check_core(const Arguments& in, const at::Tensor& core_key, const at::Tensor& core_value) {
  const checks::Shape most = core_shape(in);
  check_is_like(in.function, "core_key", core_key, in.key, in.key.scalar_type(), "key");
  const bool is_core = core_key.dim() == 4 && core_key.sym_size(0) == most[0] &&
                       core_key.sym_size(1) == most[1] && core_key.sym_size(2) <= most[2] &&
                       core_key.sym_size(3) == most[3];
  TORCH_CHECK_VALUE(is_core, in.function, ": core_key must be [", most[0], ", ", most[1], ", m, ",
                    most[3], "] with m <= ", most[2], ", got ", core_key.sym_sizes());
  check_is_like(in.function, "core_value", core_value, in.key, in.key.scalar_type(), "key");
  check_has_shape(in.function, "core_value", core_value, core_key.sym_sizes().vec());
  for (const at::Tensor* x : {&core_key, &core_value}) {
    TORCH_CHECK_VALUE(x->size(3) <= 1 || x->stride(3) == 1, in.function, ": ",
                      x == &core_key ? "core_key" : "core_value",
                      " must be contiguous in its last dimension, got strides ", x->strides());
  }
}

void register_any(torch::Library& m) {
  m.impl(kForward, unpacked<pool_any>);
  m.impl(kBackward, unpacked_backward<backward_any>);
}

}  // namespace

GroupPoolResult group_pool(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                           const GroupPoolOptions& options) {
  auto [core_key, core_value] = call(arguments_of(kForward, query, key, value, options));
  return {std::move(core_key), std::move(core_value)};
}

void group_pool_into(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                     const GroupPoolOptions& options, const at::Tensor& core_key,
                     const at::Tensor& core_value) {
  const Arguments in = arguments_of(kInto, query, key, value, options);
  check_arguments(in);
  check_core(in, core_key, core_value);
  const at::AutoDispatchBelowADInplaceOrView guard;
  pool_into(in, core_key, core_value);
  for (const at::Tensor* x : {&core_key, &core_value}) {
    if (!x->is_inference()) {
      x->unsafeGetTensorImpl()->bump_version();
    }
  }
}

TORCH_LIBRARY_FRAGMENT(paperlab, m) {
  const std::string arguments =
      "Tensor? query, Tensor key, Tensor value, int group=16, int first=0, Tensor? start=None, "
      "str kind=\"attention\", bool per_kv_head=False, float? scale=None";
  m.def((kForward + ("(" + arguments) + ") -> (Tensor core_key, Tensor core_value)").c_str());
  m.def((kBackward + ("(Tensor grad_core_key, Tensor grad_core_value, " + arguments) +
         ") -> (Tensor grad_query, Tensor grad_key, Tensor grad_value)")
            .c_str());
}

// Every device, so that a tensor on another one is refused by name.
TORCH_LIBRARY_IMPL(paperlab, CompositeExplicitAutograd, m) { register_any(m); }

// Nested tensors would meet an error of their own; the checks refuse them.
TORCH_LIBRARY_IMPL(paperlab, NestedTensorCPU, m) { register_any(m); }
TORCH_LIBRARY_IMPL(paperlab, NestedTensorCUDA, m) { register_any(m); }

TORCH_LIBRARY_IMPL(paperlab, Meta, m) {
  m.impl(kForward, unpacked<pool_meta>);
  m.impl(kBackward, unpacked_backward<backward_meta>);
}

TORCH_LIBRARY_IMPL(paperlab, Autograd, m) {
  m.impl(kForward, unpacked<pool_autograd>);
  m.impl(kBackward, torch::autograd::autogradNotImplementedFallback());
}

TORCH_LIBRARY_IMPL(paperlab, AutocastCPU, m) {
  m.impl(kForward, unpacked<pool_autocast<at::kCPU>>);
}

TORCH_LIBRARY_IMPL(paperlab, AutocastCUDA, m) {
  m.impl(kForward, unpacked<pool_autocast<at::kCUDA>>);
}

}  // namespace paperlab::ops
