#include "kernels/depth_aggregate/cuda.h"

#include <string>

#include "kernels/common/cuda/launch.cuh"
#include "kernels/depth_aggregate/check.h"
#include "kernels/depth_aggregate/cuda_launch.h"

namespace paperlab::kernels {
namespace depth {
namespace {

static_assert(kMostSources == kMostCudaSources);

template <class T>
__global__ void __launch_bounds__(kSumThreads, 2) sum_kernel(const __grid_constant__ SumTask task) {
  __shared__ SumMemory<T> memory;
  DeviceTeam<SumRegisters<T>> team{static_cast<int>(threadIdx.x), {}};
  sum_block<T>(team, memory, task, blockIdx.x);
}

}  // namespace

template <class T>
void CudaLaunch::sum(const SumTask& task, std::int64_t num_blocks) const {
  if (num_blocks > 0) {
    sum_kernel<T>
        <<<grid_size(num_blocks, "depth_aggregate_cuda"), kSumThreads, 0, context.stream>>>(task);
    PAPERLAB_CUDA_LAUNCHED(sum_kernel);
  }
}

template void CudaLaunch::sum<float>(const SumTask&, std::int64_t) const;
template void CudaLaunch::sum<BFloat16>(const SumTask&, std::int64_t) const;
template void CudaLaunch::sum<Float16>(const SumTask&, std::int64_t) const;
template void CudaLaunch::sum<double>(const SumTask&, std::int64_t) const;

}  // namespace depth

namespace {

using depth::CudaLaunch;
using depth::DepthPlan;
using depth::NoLaunch;

void check_sources(const DepthAggregate& problem, const char* function) {
  require<UnsupportedError>(problem.num_sources <= kMostCudaSources, function,
                            "at most " + std::to_string(kMostCudaSources) + " sources on a GPU",
                            std::to_string(problem.num_sources));
}

// run(plan) names the plan's function.
template <class Run>
std::int64_t bytes_for(DType dtype, Run run) {
  std::int64_t num_bytes = 0;
  with_element(dtype, [&](auto type) {
    const NoLaunch launch;
    DepthPlan<typename decltype(type)::Type, NoLaunch> plan(launch, nullptr);
    run(plan);
    num_bytes = plan.num_bytes();
  });
  return num_bytes;
}

template <class Run>
void launch_on(const Context& context, DType dtype, void* workspace, Run run) {
  with_element(dtype, [&](auto type) {
    const CudaLaunch launch{context};
    DepthPlan<typename decltype(type)::Type, CudaLaunch> plan(launch, workspace);
    run(plan);
  });
}

}  // namespace

std::int64_t connection_weights_cuda_workspace(const ConnectionWeights& problem,
                                               const ConnectionWeightsResult& result) {
  check(problem, "connection_weights_cuda");
  return bytes_for(problem.dtype, [&](auto& plan) { plan.weights(problem, result); });
}

std::int64_t connection_weights_backward_cuda_workspace(
    const ConnectionWeights& problem, const ConnectionWeightsGradients& gradients) {
  check(problem, "connection_weights_backward_cuda");
  return bytes_for(problem.dtype, [&](auto& plan) { plan.weights_backward(problem, gradients); });
}

std::int64_t depth_aggregate_backward_cuda_workspace(const DepthAggregate& problem,
                                                     const DepthAggregateGradients& gradients) {
  check(problem, gradients, "depth_aggregate_backward_cuda");
  return bytes_for(problem.dtype, [&](auto& plan) { plan.sum_backward(problem, gradients); });
}

std::int64_t depth_step_cuda_workspace(const DepthStep& problem,
                                       const ConnectionWeightsResult& result) {
  check(problem, result, "depth_step_cuda");
  return result.weights == nullptr ? 0
                                   : connection_weights_cuda_workspace(problem.generator, result);
}

std::int64_t depth_step_backward_cuda_workspace(const DepthStep& problem,
                                                const DepthStepGradients& gradients) {
  check(problem, "depth_step_backward_cuda");
  check(problem.aggregate, gradients.aggregate, "depth_step_backward_cuda");
  return bytes_for(problem.aggregate.dtype,
                   [&](auto& plan) { plan.step_backward(problem, gradients); });
}

void connection_weights_cuda(const ConnectionWeights& problem,
                             const ConnectionWeightsResult& result, void* workspace,
                             const Context& context) {
  check(problem, "connection_weights_cuda");
  launch_on(context, problem.dtype, workspace, [&](auto& plan) { plan.weights(problem, result); });
}

void connection_weights_backward_cuda(const ConnectionWeights& problem,
                                      const ConnectionWeightsGradients& gradients, void* workspace,
                                      const Context& context) {
  check(problem, "connection_weights_backward_cuda");
  launch_on(context, problem.dtype, workspace,
            [&](auto& plan) { plan.weights_backward(problem, gradients); });
}

void depth_aggregate_cuda(const DepthAggregate& problem, void* const* out, const Context& context) {
  check(problem, "depth_aggregate_cuda");
  check_sources(problem, "depth_aggregate_cuda");
  launch_on(context, problem.dtype, nullptr, [&](auto& plan) { plan.sum(problem, out); });
}

void depth_aggregate_backward_cuda(const DepthAggregate& problem,
                                   const DepthAggregateGradients& gradients, void* workspace,
                                   const Context& context) {
  check(problem, gradients, "depth_aggregate_backward_cuda");
  check_sources(problem, "depth_aggregate_backward_cuda");
  launch_on(context, problem.dtype, workspace,
            [&](auto& plan) { plan.sum_backward(problem, gradients); });
}

void depth_step_cuda(const DepthStep& problem, const ConnectionWeightsResult& result,
                     void* const* out, void* workspace, const Context& context) {
  check(problem, result, "depth_step_cuda");
  check_sources(problem.aggregate, "depth_step_cuda");
  launch_on(context, problem.aggregate.dtype, workspace,
            [&](auto& plan) { plan.step(problem, result, out); });
}

void depth_step_backward_cuda(const DepthStep& problem, const DepthStepGradients& gradients,
                              void* workspace, const Context& context) {
  check(problem, "depth_step_backward_cuda");
  check(problem.aggregate, gradients.aggregate, "depth_step_backward_cuda");
  check_sources(problem.aggregate, "depth_step_backward_cuda");
  launch_on(context, problem.aggregate.dtype, workspace,
            [&](auto& plan) { plan.step_backward(problem, gradients); });
}

}  // namespace paperlab::kernels
