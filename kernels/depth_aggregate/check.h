#pragma once
// The checks of arguments that the CPU's and the GPU's forms share (depth_aggregate.cpp,
// backward.cpp). Throw as depth_aggregate.h says.

#include "kernels/depth_aggregate/depth_aggregate.h"

namespace paperlab::kernels {

void check(const ConnectionWeights& problem, const char* function);
void check(const DepthAggregate& problem, const char* function);
void check(const DepthAggregate& problem, const DepthAggregateGradients& gradients,
           const char* function);
void check(const DepthStep& problem, const char* function);
void check(const DepthStep& problem, const ConnectionWeightsResult& result, const char* function);

}  // namespace paperlab::kernels
