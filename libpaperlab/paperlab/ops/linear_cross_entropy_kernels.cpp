#include <c10/util/Exception.h>

#include "kernels/common/backend.h"
#include "kernels/gemm/cuda.h"
#include "kernels/gemm/gemm.h"
#include "kernels/linear_cross_entropy/cuda.h"
#include "paperlab/ops/kernel_dtype_internal.h"
#include "paperlab/ops/kernel_views_internal.h"
#include "paperlab/ops/linear_cross_entropy_internal.h"
#include "paperlab/ops/parallel_bridge.h"

namespace paperlab::ops {
namespace {

// The arguments as the kernel reads them: contiguous, but weights lie where they are if they can.
struct Arguments {
  explicit Arguments(const LinearCrossEntropyProblem& in)
      : x(in.x.contiguous()),
        weight(is_readable(in.weight) ? in.weight : in.weight.contiguous()),
        target(in.target.contiguous()),
        bias(in.bias.has_value() ? in.bias->contiguous() : at::Tensor()),
        problem{
            kernel_dtype(x),
            target.numel(),
            weight.size(1),
            weight.size(0),
            x.const_data_ptr(),
            {weight.const_data_ptr(), weight.stride(0), weight.size(1) <= 1 ? 1 : weight.stride(1)},
            bias.defined() ? bias.const_data_ptr() : nullptr,
            target.const_data_ptr<std::int64_t>(),
            in.ignore_index,
            in.reduction,
            in.z_loss} {}

  // On the CPU float32 and float64 may be transposed; on a GPU lines must not lie on each other.
  static bool is_readable(const at::Tensor& weight) {
    if (!weight.device().is_cpu()) {
      return views::has_lines_apart(weight);
    }
    return weight.size(1) <= 1 || weight.stride(1) == 1 ||
           (weight.stride(0) == 1 && weight.scalar_type() != at::kBFloat16);
  }

  at::Tensor x;
  at::Tensor weight;
  at::Tensor target;
  at::Tensor bias;
  kernels::LinearCrossEntropy problem;
};

void* data_of(const at::Tensor& gradient, bool is_wanted) {
  return is_wanted ? gradient.mutable_data_ptr() : nullptr;
}

}  // namespace

void check_targets(const char* function, const LinearCrossEntropyProblem& in) {
  if (!in.target.is_cpu()) {  // a GPU is not waited for
    return;
  }
  const std::int64_t vocab_size = in.weight.size(0);
  const at::Tensor target = in.target.contiguous();
  const auto* values = target.const_data_ptr<std::int64_t>();
  const std::int64_t bad =
      kernels::first_bad_target(values, target.numel(), vocab_size, in.ignore_index);
  TORCH_CHECK_VALUE(bad < 0, function, ": target must be 0..", vocab_size - 1,
                    " or ignore_index, got ", values[bad]);
}

void forward_by_kernels(Route route, const LinearCrossEntropyProblem& in, const at::Tensor& loss,
                        const at::Tensor& lse) {
  const Arguments arguments(in);
  const kernels::LinearCrossEntropyResult result = {loss.mutable_data_ptr(),
                                                    lse.mutable_data_ptr()};
  if (route == Route::kCpu) {
    kernels::linear_cross_entropy(arguments.problem, result, kernels::gemm, torch_executor());
  } else if constexpr (kernels::kHasCuda) {
    const kernels::GemmCuda products = kernels::gemm_on_cuda();
    on_cuda(in.x, kernels::linear_cross_entropy_cuda_workspace(arguments.problem, products),
            [&](void* memory, const kernels::Context& context) {
              kernels::linear_cross_entropy_cuda(arguments.problem, result, products, memory,
                                                 context);
            });
  }
}

void backward_by_kernels(Route route, const LinearCrossEntropyProblem& in,
                         const at::Tensor& grad_loss, const at::Tensor& lse,
                         const std::array<bool, 3>& wanted,
                         const std::tuple<at::Tensor, at::Tensor, at::Tensor>& gradients) {
  const Arguments arguments(in);
  const at::Tensor dense_grad = grad_loss.contiguous();
  const at::Tensor dense_lse = lse.contiguous();
  const kernels::LinearCrossEntropyGradients of = {
      dense_grad.const_data_ptr(), dense_lse.const_data_ptr(),
      data_of(std::get<0>(gradients), wanted[0]), data_of(std::get<1>(gradients), wanted[1]),
      data_of(std::get<2>(gradients), wanted[2] && in.bias.has_value())};
  if (route == Route::kCpu) {
    kernels::linear_cross_entropy_backward(arguments.problem, of, kernels::gemm, torch_executor());
  } else if constexpr (kernels::kHasCuda) {
    const kernels::GemmCuda products = kernels::gemm_on_cuda();
    on_cuda(in.x,
            kernels::linear_cross_entropy_backward_cuda_workspace(arguments.problem, of, products),
            [&](void* memory, const kernels::Context& context) {
              kernels::linear_cross_entropy_backward_cuda(arguments.problem, of, products, memory,
                                                          context);
            });
  }
}

}  // namespace paperlab::ops
