#include "paperlab/ops/attention.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/zeros_like.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <string>
#include <string_view>
#include <tuple>
#include <utility>

#include "kernels/attention/cuda.h"
#include "paperlab/ops/attention_arguments_internal.h"
#include "paperlab/ops/attention_kernels_internal.h"
#include "paperlab/ops/attention_torch_internal.h"
#include "paperlab/ops/dispatch_rules_internal.h"
#include "paperlab/ops/kernel_dtype_internal.h"
#include "paperlab/ops/route_internal.h"

namespace paperlab::ops {
namespace {

constexpr char kAttention[] = "attention";
constexpr char kDecode[] = "attention_decode";
constexpr char kBackward[] = "attention_backward";

// `shared_memory(dtype, head size)`: what the kernel's largest block needs.
Route chosen_route(const AttentionArguments& in,
                   std::int64_t (*shared_memory)(kernels::DType, std::int64_t)) {
  return route_of(kAttention, in.query, "query", /*kernel_takes_dtype=*/true,
                  shared_memory(kernel_dtype(in.query), in.query.size(3)));
}

AttentionResults computed(const AttentionArguments& in) {
  const Route route = chosen_route(in, kernels::attention_cuda_shared_memory);
  return route == Route::kTorch ? attention_by_torch(in) : attention_by_kernels(in, route);
}

AttentionResults attention_any(const AttentionArguments& in) {
  check_arguments(in);
  return computed(in);
}

AttentionResults decode_any(const AttentionArguments& in) {
  check_decode_arguments(in);
  return computed(in);
}

AttentionGradients backward_any(const AttentionArguments& in,
                                const AttentionBackwardArguments& backward) {
  check_arguments(in);
  check_backward_arguments(in, backward);
  const Route route = chosen_route(in, kernels::attention_backward_cuda_shared_memory);
  return route == Route::kTorch ? attention_backward_by_torch(in, backward)
                                : attention_backward_by_kernels(in, backward, route);
}

AttentionResults attention_meta(const AttentionArguments& in) {
  check_arguments(in);
  return new_results(in);
}

AttentionResults decode_meta(const AttentionArguments& in) {
  check_decode_arguments(in);
  return new_results(in);
}

AttentionGradients backward_meta(const AttentionArguments& in,
                                 const AttentionBackwardArguments& backward) {
  check_arguments(in);
  check_backward_arguments(in, backward);
  return new_gradients(in);
}

at::Tensor defined_or_none(const std::optional<at::Tensor>& x) { return x.value_or(at::Tensor()); }

std::optional<at::Tensor> optional_of(const at::Tensor& x) {
  return x.defined() ? std::optional<at::Tensor>(x) : std::nullopt;
}

// The one place that knows the order of the schema: an operator `kFunction` as the dispatcher calls
// it, from `kKernel`, which takes a struct.
template <auto kKernel, const char* kFunction>
AttentionResults unpacked(  // NOLINT(readability-function-size): as many as the schema has
    const at::Tensor& query, const at::Tensor& key, const at::Tensor& value, bool causal,
    std::optional<c10::SymInt> window, std::optional<double> scale,
    const std::optional<at::Tensor>& key_start, const std::optional<at::Tensor>& key_end,
    const std::optional<at::Tensor>& prefix_query, const std::optional<at::Tensor>& prefix_key,
    const std::optional<at::Tensor>& prefix_value, std::int64_t prefix_group,
    std::int64_t prefix_kept, bool prefix_overlap, bool prefix_truncated, c10::SymInt num_past) {
  return kKernel({kFunction, query, key, value, causal, std::move(window), scale,
                  defined_or_none(key_start), defined_or_none(key_end),
                  defined_or_none(prefix_query), defined_or_none(prefix_key),
                  defined_or_none(prefix_value), prefix_group, prefix_kept, prefix_overlap,
                  prefix_truncated, std::move(num_past)});
}

template <auto kKernel>
AttentionGradients
unpacked_backward(  // NOLINT(readability-function-size): as many as the schema has
    const at::Tensor& grad_out, const std::optional<at::Tensor>& grad_lse, const at::Tensor& query,
    const at::Tensor& key, const at::Tensor& value, const at::Tensor& out, const at::Tensor& lse,
    bool causal, std::optional<c10::SymInt> window, std::optional<double> scale,
    const std::optional<at::Tensor>& key_start, const std::optional<at::Tensor>& key_end,
    const std::optional<at::Tensor>& prefix_query, const std::optional<at::Tensor>& prefix_key,
    const std::optional<at::Tensor>& prefix_value, std::int64_t prefix_group,
    std::int64_t prefix_kept, bool prefix_overlap, bool prefix_truncated, c10::SymInt num_past) {
  return kKernel(
      {kBackward, query, key, value, causal, std::move(window), scale, defined_or_none(key_start),
       defined_or_none(key_end), defined_or_none(prefix_query), defined_or_none(prefix_key),
       defined_or_none(prefix_value), prefix_group, prefix_kept, prefix_overlap, prefix_truncated,
       std::move(num_past)},
      {grad_out, defined_or_none(grad_lse), out, lse});
}

using Signature = decltype(unpacked<attention_any, kAttention>);
using BackwardSignature = decltype(unpacked_backward<backward_any>);

template <class F>
c10::TypedOperatorHandle<F> find_operator(const char* function) {
  const std::string name = std::string("paperlab::") + function;
  return c10::Dispatcher::singleton().findSchemaOrThrow(name.c_str(), "").typed<F>();
}

// Calls the operator that in.function names.
AttentionResults call(const AttentionArguments& in) {
  static const auto attention = find_operator<Signature>(kAttention);
  static const auto decode = find_operator<Signature>(kDecode);
  return (std::string_view(in.function) == kDecode ? decode : attention)
      .call(in.query, in.key, in.value, in.causal, in.window, in.scale, optional_of(in.key_start),
            optional_of(in.key_end), optional_of(in.prefix_query), optional_of(in.prefix_key),
            optional_of(in.prefix_value), in.prefix_group, in.prefix_kept, in.prefix_overlap,
            in.prefix_truncated, in.num_past);
}

AttentionGradients call_backward(const AttentionArguments& in,
                                 const AttentionBackwardArguments& backward) {
  static const auto op = find_operator<BackwardSignature>(kBackward);
  return op.call(backward.grad_out, optional_of(backward.grad_lse), in.query, in.key, in.value,
                 backward.out, backward.lse, in.causal, in.window, in.scale,
                 optional_of(in.key_start), optional_of(in.key_end), optional_of(in.prefix_query),
                 optional_of(in.prefix_key), optional_of(in.prefix_value), in.prefix_group,
                 in.prefix_kept, in.prefix_overlap, in.prefix_truncated, in.num_past);
}

void save(torch::autograd::AutogradContext& context, const AttentionArguments& in,
          const torch::autograd::variable_list& results) {
  context.save_for_backward({in.query, in.key, in.value, in.key_start, in.key_end, in.prefix_query,
                             in.prefix_key, in.prefix_value, results[0], results[1]});
  context.saved_data["causal"] = in.causal;
  context.saved_data["window"] = in.window;
  context.saved_data["scale"] = in.scale;
  context.saved_data["prefix_group"] = in.prefix_group;
  context.saved_data["prefix_kept"] = in.prefix_kept;
  context.saved_data["prefix_overlap"] = in.prefix_overlap;
  context.saved_data["prefix_truncated"] = in.prefix_truncated;
  context.saved_data["num_past"] = in.num_past;
}

AttentionArguments saved_arguments(torch::autograd::AutogradContext& context,
                                   const torch::autograd::variable_list& saved) {
  return {kBackward,
          saved[0],
          saved[1],
          saved[2],
          context.saved_data["causal"].toBool(),
          context.saved_data["window"].toOptional<c10::SymInt>(),
          context.saved_data["scale"].toOptional<double>(),
          saved[3],
          saved[4],
          saved[5],
          saved[6],
          saved[7],
          context.saved_data["prefix_group"].toInt(),
          context.saved_data["prefix_kept"].toInt(),
          context.saved_data["prefix_overlap"].toBool(),
          context.saved_data["prefix_truncated"].toBool(),
          context.saved_data["num_past"].toSymInt()};
}

class Attention : public torch::autograd::Function<Attention> {
 public:
  // The tensors with gradients stand apart because autograd looks at direct arguments alone.
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext* context,
                                                const at::Tensor& /*query*/,
                                                const at::Tensor& /*key*/,
                                                const at::Tensor& /*value*/,
                                                const std::optional<at::Tensor>& /*prefix_query*/,
                                                const std::optional<at::Tensor>& /*prefix_key*/,
                                                const std::optional<at::Tensor>& /*prefix_value*/,
                                                const AttentionArguments& in) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    const auto [out, lse] = call(in);
    context->set_materialize_grads(false);
    save(*context, in, {out, lse});
    return {out, lse};
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 const torch::autograd::variable_list& grads) {
    if (!grads[0].defined() && !grads[1].defined()) {
      return torch::autograd::variable_list(7);
    }
    const auto saved = context->get_saved_variables();
    const AttentionArguments in = saved_arguments(*context, saved);
    const at::Tensor grad_out = grads[0].defined() ? grads[0] : at::zeros_like(saved[8]);
    const auto [query, key, value, prefix_query, prefix_key, prefix_value] =
        call_backward(in, {grad_out, grads[1], saved[8], saved[9]});
    return {query,
            key,
            value,
            in.prefix_query.defined() ? prefix_query : at::Tensor(),
            in.prefix_key.defined() ? prefix_key : at::Tensor(),
            in.prefix_value.defined() ? prefix_value : at::Tensor(),
            at::Tensor()};
  }
};

AttentionResults attention_autograd(const AttentionArguments& in) {
  refuse_forward_gradients(in.function, in.query, in.key, in.value, in.prefix_query, in.prefix_key,
                           in.prefix_value);
  check_arguments(in);  // apply asks for sizes, which not every tensor has
  const auto results =
      Attention::apply(in.query, in.key, in.value, optional_of(in.prefix_query),
                       optional_of(in.prefix_key), optional_of(in.prefix_value), in);
  return {results[0], results[1]};
}

// Like scaled_dot_product_attention: in autocast's dtype; float64 stays.
template <c10::DeviceType kDevice>
AttentionResults attention_autocast(const AttentionArguments& in) {
  const autocast::Guard<kDevice> guard;
  AttentionArguments lower = in;
  for (at::Tensor* x : {&lower.query, &lower.key, &lower.value, &lower.prefix_query,
                        &lower.prefix_key, &lower.prefix_value}) {
    *x = autocast::lowered<kDevice>(*x);
  }
  return call(lower);
}

void register_computation(torch::Library& m) {
  m.impl(kAttention, unpacked<attention_any, kAttention>);
  m.impl(kDecode, unpacked<decode_any, kDecode>);
  m.impl(kBackward, unpacked_backward<backward_any>);
}

}  // namespace

AttentionResult attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                          const AttentionOptions& options) {
  for (const auto& [name, x] : {std::pair("query", &query), {"key", &key}, {"value", &value}}) {
    TORCH_CHECK_VALUE(x->defined(), "attention: ", name, " must be a tensor, got none");
  }
  const std::optional<c10::SymInt> window(options.window);
  auto [out, lse] =
      call({kAttention, query, key, value, options.causal, window, options.scale, options.key_start,
            options.key_end, options.prefix_query, options.prefix_key, options.prefix_value,
            options.prefix_group, options.prefix_kept, options.prefix_overlap,
            options.prefix_truncated, options.num_past});
  return {std::move(out), std::move(lse)};
}

TORCH_LIBRARY_FRAGMENT(paperlab, m) {
  const std::string tensors = "Tensor query, Tensor key, Tensor value, ";
  const std::string options =
      "bool causal=True, SymInt? window=None, float? scale=None, Tensor? key_start=None, "
      "Tensor? key_end=None, *, Tensor? prefix_query=None, Tensor? prefix_key=None, "
      "Tensor? prefix_value=None, int prefix_group=0, int prefix_kept=0, "
      "bool prefix_overlap=False, bool prefix_truncated=False, SymInt num_past=0";
  const std::string forward = "(" + tensors + options + ") -> (Tensor out, Tensor lse)";
  const std::string backward =
      "(Tensor grad_out, Tensor? grad_lse, " + tensors + "Tensor out, Tensor lse, " + options +
      ") -> (Tensor grad_query, Tensor grad_key, Tensor grad_value, Tensor grad_prefix_query, "
      "Tensor grad_prefix_key, Tensor grad_prefix_value)";
  m.def((kAttention + forward).c_str());
  m.def((kDecode + forward).c_str());
  m.def((kBackward + backward).c_str());
}

// Every device, so that a tensor on another one is refused by name.
TORCH_LIBRARY_IMPL(paperlab, CompositeExplicitAutograd, m) { register_computation(m); }

// Nested tensors would meet an error of their own; the checks refuse them.
TORCH_LIBRARY_IMPL(paperlab, NestedTensorCPU, m) { register_computation(m); }

TORCH_LIBRARY_IMPL(paperlab, NestedTensorCUDA, m) { register_computation(m); }

TORCH_LIBRARY_IMPL(paperlab, Meta, m) {
  m.impl(kAttention, unpacked<attention_meta, kAttention>);
  m.impl(kDecode, unpacked<decode_meta, kDecode>);
  m.impl(kBackward, unpacked_backward<backward_meta>);
}

TORCH_LIBRARY_IMPL(paperlab, Autograd, m) {
  m.impl(kAttention, unpacked<attention_autograd, kAttention>);
  m.impl(kDecode, unpacked<attention_autograd, kDecode>);
  m.impl(kBackward, torch::autograd::autogradNotImplementedFallback());
}

TORCH_LIBRARY_IMPL(paperlab, AutocastCPU, m) {
  m.impl(kAttention, unpacked<attention_autocast<at::kCPU>, kAttention>);
  m.impl(kDecode, unpacked<attention_autocast<at::kCPU>, kDecode>);
}

TORCH_LIBRARY_IMPL(paperlab, AutocastCUDA, m) {
  m.impl(kAttention, unpacked<attention_autocast<at::kCUDA>, kAttention>);
  m.impl(kDecode, unpacked<attention_autocast<at::kCUDA>, kDecode>);
}

}  // namespace paperlab::ops
