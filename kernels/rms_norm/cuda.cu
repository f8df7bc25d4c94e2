#include "kernels/rms_norm/cuda.h"

#include "kernels/common/cuda/launch.cuh"
#include "kernels/rms_norm/block_backward.h"

namespace paperlab::kernels {
namespace {

template <class T>
__global__ void __launch_bounds__(kRmsNormLanes)
    rms_norm_kernel(RmsNormForward problem, RowPlan plan) {
  __shared__ RmsNormMemory<T> memory;
  DeviceTeam<RmsNormRegisters<T>> team{static_cast<int>(threadIdx.x), {}};
  rms_norm_block(team, memory, problem, plan, blockIdx.x);
}

template <class T>
__global__ void __launch_bounds__(kRmsNormLanes)
    rms_grad_means_kernel(RmsNormBackward problem, RmsGradPlan plan, NumberOf<T>* means) {
  __shared__ RmsGradMemory<T> memory;
  DeviceTeam<RmsGradRegisters<T>> team{static_cast<int>(threadIdx.x), {}};
  rms_grad_means_block(team, memory, problem, plan, blockIdx.x, means);
}

template <class T>
__global__ void __launch_bounds__(kRmsNormLanes)
    rms_grad_kernel(RmsNormBackward problem, RmsGradPlan plan, NumberOf<T>* scratch) {
  __shared__ RmsGradMemory<T> memory;
  DeviceTeam<RmsGradRegisters<T>> team{static_cast<int>(threadIdx.x), {}};
  rms_grad_block(team, memory, problem, plan, blockIdx.x, scratch);
}

template <class T>
__global__ void __launch_bounds__(kPartThreads)
    rms_grad_weight_kernel(RmsNormBackward problem, std::int64_t num_parts,
                           const NumberOf<T>* parts) {
  __shared__ PartMemory<T> memory;
  DeviceTeam<NoRegisters> team{static_cast<int>(threadIdx.x), {}};
  sum_parts_block(team, memory, parts, num_parts, problem.width, blockIdx.x,
                  static_cast<T*>(problem.grad_weight));
}

constexpr char kForward[] = "rms_norm";
constexpr char kBackward[] = "rms_norm_backward";

template <class T>
void run_backward(const RmsNormBackward& problem, void* workspace, const Context& context) {
  const RmsGradPlan plan = rms_grad_plan<T>(problem);
  const RowTeam& team = plan.rows.team;
  auto* scratch = static_cast<NumberOf<T>*>(workspace);
  if (problem.num_rows > 0) {
    if (plan.has_means()) {
      const unsigned blocks = grid_size(team.num_turns(problem.num_rows), kBackward);
      rms_grad_means_kernel<T><<<blocks, team.threads(), 0, context.stream>>>(
          problem, plan, scratch + means_at(problem, plan));
      PAPERLAB_CUDA_LAUNCHED(rms_grad_means_kernel);
    }
    const unsigned blocks = grid_size(plan.num_parts * plan.rows.num_chunks, kBackward);
    rms_grad_kernel<T><<<blocks, team.threads(), 0, context.stream>>>(problem, plan, scratch);
    PAPERLAB_CUDA_LAUNCHED(rms_grad_kernel);
  }
  const unsigned blocks = grid_size(num_part_blocks(problem.width), kBackward);
  rms_grad_weight_kernel<T>
      <<<blocks, kPartThreads, 0, context.stream>>>(problem, plan.num_parts, scratch);
  PAPERLAB_CUDA_LAUNCHED(rms_grad_weight_kernel);
}

}  // namespace

std::int64_t rms_norm_cuda_workspace(const RmsNormForward&) { return 0; }

std::int64_t rms_norm_backward_cuda_workspace(const RmsNormBackward& problem) {
  std::int64_t bytes = 0;
  with_element(problem.dtype, [&](auto element) {
    using T = typename decltype(element)::Type;
    bytes = scratch_size(problem, rms_grad_plan<T>(problem)) *
            static_cast<std::int64_t>(sizeof(NumberOf<T>));
  });
  return (bytes + 15) / 16 * 16;
}

void rms_norm_cuda(const RmsNormForward& problem, void*, const Context& context) {
  check_rms_norm(problem);
  if (problem.num_rows == 0) {
    return;
  }
  with_element(problem.dtype, [&](auto element) {
    using T = typename decltype(element)::Type;
    const RowPlan plan = rms_norm_plan<T>(problem);
    const unsigned blocks = grid_size(plan.team.num_turns(problem.num_rows), kForward);
    rms_norm_kernel<T><<<blocks, plan.team.threads(), 0, context.stream>>>(problem, plan);
    PAPERLAB_CUDA_LAUNCHED(rms_norm_kernel);
  });
}

void rms_norm_backward_cuda(const RmsNormBackward& problem, void* workspace,
                            const Context& context) {
  check_rms_norm_backward(problem);
  with_element(problem.dtype, [&](auto element) {
    run_backward<typename decltype(element)::Type>(problem, workspace, context);
  });
}

}  // namespace paperlab::kernels
