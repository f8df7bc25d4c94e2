#include "kernels/common/backend.h"
#include "kernels/group_pool/cuda.h"
#include "kernels/group_pool/group_pool.h"
#include "paperlab/ops/group_pool_internal.h"
#include "paperlab/ops/kernel_views_internal.h"
#include "paperlab/ops/parallel_bridge.h"

namespace paperlab::ops::pooling {
namespace {

using views::const_view;
using views::mutable_view;
using views::with_contiguous_rows;

// As kernels read them.
Arguments readable(Arguments in) {
  in.query = has_evaluator(in) ? with_contiguous_rows(in.query) : at::Tensor();
  in.key = with_contiguous_rows(in.key);
  in.value = with_contiguous_rows(in.value);
  in.start = in.start.defined() ? in.start.contiguous() : in.start;
  return in;
}

// Views of `in`, which must be readable and outlive them.
kernels::GroupPoolInputs kernel_inputs(const Arguments& in) {
  return {const_view(in.query),
          const_view(in.key),
          const_view(in.value),
          in.start.defined() ? in.start.const_data_ptr<std::int64_t>() : nullptr,
          in.first,
          in.group,
          in.kind == "attention" ? kernels::PoolKind::kAttention
          : in.kind == "mean"    ? kernels::PoolKind::kMean
                                 : kernels::PoolKind::kMax,
          scale_of(in)};
}

void forward(Route route, const kernels::GroupPoolInputs& inputs,
             const kernels::GroupPoolOutputs& outputs, const at::Tensor& like) {
  if (route == Route::kCpu) {
    kernels::group_pool(inputs, outputs, torch_executor());
  } else if constexpr (kernels::kHasCuda) {
    on_cuda(like, kernels::group_pool_cuda_workspace(inputs, outputs),
            [&](void* memory, const kernels::Context& context) {
              kernels::group_pool_cuda(inputs, outputs, memory, context);
            });
  }
}

void backward(Route route, const kernels::GroupPoolInputs& inputs,
              const kernels::GroupPoolGradients& gradients, const at::Tensor& like) {
  if (route == Route::kCpu) {
    kernels::group_pool_backward(inputs, gradients, torch_executor());
  } else if constexpr (kernels::kHasCuda) {
    on_cuda(like, kernels::group_pool_backward_cuda_workspace(inputs, gradients),
            [&](void* memory, const kernels::Context& context) {
              kernels::group_pool_backward_cuda(inputs, gradients, memory, context);
            });
  }
}

}  // namespace

void pool_by_kernel(Route route, const Arguments& in, const at::Tensor& core_key,
                    const at::Tensor& core_value) {
  if (route == Route::kCuda) {  // the CPU's kernel looks for itself, and at starts too
    check_values(in, core_key.size(2));
  }
  const Arguments inputs = readable(in);
  views::with_errors_of(in.function, [&] {
    forward(route, kernel_inputs(inputs), {mutable_view(core_key), mutable_view(core_value)},
            in.key);
  });
}

void pool_backward_by_kernel(Route route, const Arguments& in, const at::Tensor& grad_key,
                             const at::Tensor& grad_value, const Gradients& gradients) {
  if (route == Route::kCuda) {
    check_values(in, grad_key.size(2));
  }
  const Arguments inputs = readable(in);
  const at::Tensor of_key = with_contiguous_rows(grad_key);
  const at::Tensor of_value = with_contiguous_rows(grad_value);
  const auto& [query, key, value] = gradients;
  const kernels::TensorView query_view =
      has_evaluator(in) ? mutable_view(query) : kernels::TensorView();
  views::with_errors_of(in.function, [&] {
    backward(route, kernel_inputs(inputs),
             {const_view(of_key), const_view(of_value), query_view, mutable_view(key),
              mutable_view(value)},
             in.key);
  });
}

}  // namespace paperlab::ops::pooling
