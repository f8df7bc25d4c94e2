// Checks, workspaces and the order of launches; deltas and the merging of split rows.
#include "kernels/attention/cuda.h"

#include "kernels/attention/cuda_blocks.cuh"
#include "kernels/attention/cuda_hopper.h"
#include "kernels/attention/cuda_launch.h"
#include "kernels/common/cuda/architecture.h"

namespace paperlab::kernels {
namespace {

struct NoRegisters {};

template <class E>
__global__ void __launch_bounds__(kMergeThreads)
    merge_kernel(const __grid_constant__ ForwardLaunch launch) {
  DeviceTeam<NoRegisters> team{static_cast<int>(threadIdx.x), {}};
  merge_block<E>(team, launch, blockIdx.x);
}

template <class E>
__global__ void __launch_bounds__(kDeltaThreads)
    delta_kernel(const __grid_constant__ BackwardLaunch launch) {
  DeviceTeam<DeltaRegisters<NumberOf<E>>> team{static_cast<int>(threadIdx.x), {}};
  delta_block<E>(team, launch, std::int64_t{blockIdx.x} * kDeltaRows);
}

bool is_empty(const AttentionInputs& in) {
  return in.query.size[0] == 0 || in.query.size[1] == 0 || in.query.size[2] == 0;
}

std::int64_t num_rows(const AttentionInputs& in) {
  return in.query.size[0] * in.query.size[1] * in.query.size[2];
}

std::int64_t number_bytes(const AttentionInputs& in) {
  return in.query.dtype == DType::kFloat64 ? 8 : 4;
}

std::int64_t whole_packs(std::int64_t bytes) { return ceil_div(bytes, 16) * 16; }

}  // namespace

std::int64_t attention_cuda_workspace(const AttentionInputs& inputs) {
  check_attention(inputs);
  if (is_empty(inputs) || !is_split(inputs)) {
    return 0;
  }
  return whole_packs(num_rows(inputs) * key_runs(inputs).count *
                     partial_width(inputs.query.size[3]) * number_bytes(inputs));
}

std::int64_t attention_backward_cuda_workspace(const AttentionInputs& inputs) {
  check_attention(inputs);
  return whole_packs(num_rows(inputs) * number_bytes(inputs));
}

void attention_cuda(const AttentionInputs& inputs, const AttentionOutputs& outputs, void* workspace,
                    const Context& context) {
  check_attention(inputs);
  if (is_empty(inputs)) {
    return;
  }
  const ForwardLaunch launch = forward_launch(inputs, outputs, workspace);
  with_element(inputs.query.dtype, [&]<class E>(ElementType<E>) {
    if constexpr (sizeof(E) == 2) {
      if (!context.is_portable && fits_hopper(launch) &&
          current_device_facts().architecture == 90) {
        launch_hopper<E>(launch, context);
      } else {
        launch_forward<E>(launch, context);
      }
    } else {
      launch_plain_forward(launch, context);
    }
    if (launch.partials != nullptr) {
      launch_blocks(merge_kernel<E>, num_rows(inputs), kMergeThreads, 0, context, launch);
    }
  });
}

void attention_backward_cuda(const AttentionInputs& inputs, const AttentionBackwardInputs& forward,
                             const AttentionGradients& gradients, void* workspace,
                             const Context& context) {
  check_attention(inputs);
  if (inputs.query.size[0] == 0 || inputs.query.size[1] == 0) {
    return;
  }
  const BackwardLaunch launch = backward_launch(inputs, forward, gradients, workspace);
  with_element(inputs.query.dtype, [&]<class E>(ElementType<E>) {
    launch_blocks(delta_kernel<E>, ceil_div(num_rows(inputs), kDeltaRows), kDeltaThreads, 0,
                  context, launch);
    if constexpr (sizeof(E) == 2) {
      launch_backward<E>(launch, context);
    } else {
      launch_plain_backward(launch, context);
    }
  });
}

}  // namespace paperlab::kernels
