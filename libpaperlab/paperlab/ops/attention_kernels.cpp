#include "paperlab/ops/attention_kernels_internal.h"

#include <ATen/ops/empty.h>

#include <cmath>
#include <tuple>

#include "kernels/attention/attention.h"
#include "kernels/attention/cuda.h"
#include "kernels/common/backend.h"
#include "paperlab/ops/kernel_views_internal.h"
#include "paperlab/ops/parallel_bridge.h"

namespace paperlab::ops {
namespace {

using views::const_view;
using views::mutable_view;
using views::with_contiguous_rows;
using views::with_errors_of;

AttentionArguments readable(AttentionArguments x) {
  for (at::Tensor* tensor :
       {&x.query, &x.key, &x.value, &x.prefix_query, &x.prefix_key, &x.prefix_value}) {
    *tensor = with_contiguous_rows(*tensor);
  }
  for (at::Tensor* bound : {&x.key_start, &x.key_end}) {
    *bound = bound->defined() ? bound->contiguous() : *bound;
  }
  return x;
}

const std::int64_t* key_bound(const at::Tensor& x) {
  return x.defined() ? x.const_data_ptr<std::int64_t>() : nullptr;
}

kernels::KeyRule core_context_of(const AttentionArguments& in) {
  kernels::KeyRule rule = kernels::KeyRule::core_context(in.prefix_group, in.window->expect_int());
  rule.kept = in.prefix_kept;
  rule.overlap = in.prefix_overlap ? 1 : 0;
  rule.truncated = in.prefix_truncated;
  return rule;
}

kernels::KeyRule pattern_of(const AttentionArguments& in) {
  if (!in.causal) {
    return kernels::KeyRule::full();
  }
  if (!in.window.has_value()) {
    return kernels::KeyRule::dense();
  }
  const std::int64_t window = in.window->expect_int();
  if (!in.prefix_key.defined()) {
    return kernels::KeyRule::sliding(window);
  }
  return in.prefix_group > 0 ? core_context_of(in)
                             : kernels::KeyRule::sinks(in.prefix_key.size(2), window);
}

// Views of `in`, which must be readable and outlive them.
kernels::AttentionInputs kernel_inputs(const AttentionArguments& in) {
  return {const_view(in.query),
          const_view(in.key),
          const_view(in.value),
          const_view(in.prefix_query),
          const_view(in.prefix_key),
          const_view(in.prefix_value),
          key_bound(in.key_start),
          key_bound(in.key_end),
          rule_of(in),
          scale_of(in)};
}

// Views of the gradients; those of inputs that are absent are absent.
kernels::AttentionGradients kernel_gradients(const AttentionArguments& in,
                                             const AttentionGradients& gradients) {
  const auto view = [](const at::Tensor& input, const at::Tensor& gradient) {
    return input.defined() ? mutable_view(gradient) : kernels::TensorView();
  };
  return {
      view(in.query, std::get<0>(gradients)),      view(in.key, std::get<1>(gradients)),
      view(in.value, std::get<2>(gradients)),      view(in.prefix_query, std::get<3>(gradients)),
      view(in.prefix_key, std::get<4>(gradients)), view(in.prefix_value, std::get<5>(gradients))};
}

at::Tensor new_gradient(const at::Tensor& input, const at::Tensor& query) {
  return input.defined() ? at::empty_symint(input.sym_sizes(), input.options())
                         : at::empty({0}, query.options());
}

}  // namespace

kernels::KeyRule rule_of(const AttentionArguments& in) {
  kernels::KeyRule rule = pattern_of(in);
  rule.num_past = in.num_past.expect_int();
  return rule;
}

double scale_of(const AttentionArguments& in) {
  return in.scale.value_or(1.0 / std::sqrt(static_cast<double>(in.query.size(3))));
}

AttentionResults new_results(const AttentionArguments& in) {
  const c10::SymIntArrayRef sizes = in.query.sym_sizes();
  const at::TensorOptions options = in.query.options();
  return {at::empty_symint(sizes, options),
          at::empty_symint(sizes.slice(0, 3), options.dtype(lse_dtype(in.query)))};
}

AttentionGradients new_gradients(const AttentionArguments& in) {
  return {new_gradient(in.query, in.query),      new_gradient(in.key, in.query),
          new_gradient(in.value, in.query),      new_gradient(in.prefix_query, in.query),
          new_gradient(in.prefix_key, in.query), new_gradient(in.prefix_value, in.query)};
}

AttentionResults attention_by_kernels(const AttentionArguments& in, Route route) {
  const AttentionArguments inputs = readable(in);
  AttentionResults results = new_results(in);
  const kernels::AttentionOutputs outputs = {mutable_view(std::get<0>(results)),
                                             std::get<1>(results).mutable_data_ptr()};
  const kernels::AttentionInputs problem = kernel_inputs(inputs);
  with_errors_of(in.function, [&] {
    if (route == Route::kCpu) {
      kernels::attention(problem, outputs, torch_executor());
    } else if constexpr (kernels::kHasCuda) {
      on_cuda(in.query, kernels::attention_cuda_workspace(problem),
              [&](void* memory, const kernels::Context& context) {
                kernels::attention_cuda(problem, outputs, memory, context);
              });
    }
  });
  return results;
}

AttentionGradients attention_backward_by_kernels(const AttentionArguments& in,
                                                 const AttentionBackwardArguments& backward,
                                                 Route route) {
  const AttentionArguments inputs = readable(in);
  const at::Tensor grad_out = with_contiguous_rows(backward.grad_out);
  const at::Tensor out = with_contiguous_rows(backward.out);
  const at::Tensor lse = backward.lse.contiguous();
  const at::Tensor grad_lse =
      backward.grad_lse.defined() ? backward.grad_lse.contiguous() : at::Tensor();
  AttentionGradients gradients = new_gradients(in);
  const kernels::AttentionInputs problem = kernel_inputs(inputs);
  const kernels::AttentionBackwardInputs forward = {
      const_view(grad_out), grad_lse.defined() ? grad_lse.const_data_ptr() : nullptr,
      const_view(out), lse.const_data_ptr()};
  const kernels::AttentionGradients views = kernel_gradients(in, gradients);
  with_errors_of(in.function, [&] {
    if (route == Route::kCpu) {
      kernels::attention_backward(problem, forward, views, torch_executor());
    } else if constexpr (kernels::kHasCuda) {
      if (in.query.size(1) == 0) {  // nobody reads the keys, so no block writes their gradients
        std::apply([](const auto&... gradient) { (gradient.zero_(), ...); }, gradients);
        return;
      }
      on_cuda(in.query, kernels::attention_backward_cuda_workspace(problem),
              [&](void* memory, const kernels::Context& context) {
                kernels::attention_backward_cuda(problem, forward, views, memory, context);
              });
    }
  });
  return gradients;
}

}  // namespace paperlab::ops
