#pragma once
// depth_aggregate.h on a GPU: the same problems with pointers of the device, asynchronous on the
// context's stream. What lies on the host are the arrays of pointers (sources, streams, gradients),
// which a launch takes along. float32, bfloat16 and float16 add in float32 (the generator's
// products of the latter two on the tensor cores), float64 in float64. The same bits from run to
// run; an element's bits depend on its token alone, sums over tokens on N as well.
//
// Errors are those of the CPU's forms, before any work, and UnsupportedError for more than
// kMostCudaSources sources; CudaError where a launch fails.

#include "kernels/common/cuda/context.h"
#include "kernels/depth_aggregate/depth_aggregate.h"

namespace paperlab::kernels {

constexpr std::int64_t kMostCudaSources = 256;

// Bytes of the device that the call of the same name needs, with the same arguments, as its
// `workspace`, aligned to 256 bytes. What is absent in the arguments must be absent here.
std::int64_t connection_weights_cuda_workspace(const ConnectionWeights& problem,
                                               const ConnectionWeightsResult& result);
std::int64_t connection_weights_backward_cuda_workspace(
    const ConnectionWeights& problem, const ConnectionWeightsGradients& gradients);
std::int64_t depth_aggregate_backward_cuda_workspace(const DepthAggregate& problem,
                                                     const DepthAggregateGradients& gradients);
std::int64_t depth_step_cuda_workspace(const DepthStep& problem,
                                       const ConnectionWeightsResult& result);
std::int64_t depth_step_backward_cuda_workspace(const DepthStep& problem,
                                                const DepthStepGradients& gradients);

void connection_weights_cuda(const ConnectionWeights& problem,
                             const ConnectionWeightsResult& result, void* workspace,
                             const Context& context);
void connection_weights_backward_cuda(const ConnectionWeights& problem,
                                      const ConnectionWeightsGradients& gradients, void* workspace,
                                      const Context& context);
// Needs no workspace.
void depth_aggregate_cuda(const DepthAggregate& problem, void* const* out, const Context& context);
void depth_aggregate_backward_cuda(const DepthAggregate& problem,
                                   const DepthAggregateGradients& gradients, void* workspace,
                                   const Context& context);
void depth_step_cuda(const DepthStep& problem, const ConnectionWeightsResult& result,
                     void* const* out, void* workspace, const Context& context);
void depth_step_backward_cuda(const DepthStep& problem, const DepthStepGradients& gradients,
                              void* workspace, const Context& context);

}  // namespace paperlab::kernels
