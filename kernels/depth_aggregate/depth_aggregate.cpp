#include "kernels/depth_aggregate/depth_aggregate.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "kernels/common/number.h"
#include "paperlab/core/error.h"

namespace paperlab::kernels {
namespace {

std::string shape_text(std::int64_t a, std::int64_t b) {
  return "[" + std::to_string(a) + ", " + std::to_string(b) + "]";
}

void check(const ConnectionWeights& problem, const char* function) {
  require<ShapeError>(problem.num_tokens >= 0 && problem.width >= 1, function,
                      "x must be [N, D] with D >= 1",
                      shape_text(problem.num_tokens, problem.width));
  require<ShapeError>(problem.hidden_size >= 0 && problem.num_weights >= 1, function,
                      "w2 must be [K, C J] with C J >= 1",
                      shape_text(problem.hidden_size, problem.num_weights));
  require<ValueError>(problem.eps > 0.0, function, "eps must be positive",
                      std::to_string(problem.eps));
}

void check(const DepthAggregate& problem, const char* function) {
  require<ShapeError>(problem.num_tokens >= 0 && problem.width >= 1, function,
                      "sources must be [N, D] with D >= 1",
                      shape_text(problem.num_tokens, problem.width));
  require<ShapeError>(problem.num_sources >= 1 && problem.num_ways >= 1, function,
                      "weights must be [.., C, J] with C, J >= 1",
                      shape_text(problem.num_ways, problem.num_sources));
  require<ValueError>(
      problem.weights_dtype == problem.dtype || problem.weights_dtype == DType::kFloat32, function,
      "weights must be float32 or as the sources", "another dtype");
}

void check(const DepthAggregate& problem, const DepthAggregateGradients& gradients) {
  check(problem, "depth_aggregate_backward");
  require<ValueError>(gradients.num_added >= 0 && gradients.num_added <= problem.num_sources,
                      "depth_aggregate_backward",
                      "num_added must be 0.." + std::to_string(problem.num_sources),
                      std::to_string(gradients.num_added));
}

void check(const DepthStep& problem, const char* function) {
  const ConnectionWeights& generator = problem.generator;
  const DepthAggregate& aggregate = problem.aggregate;
  check(generator, function);
  check(aggregate, function);
  require<ShapeError>(generator.dtype == aggregate.dtype &&
                          generator.num_tokens == aggregate.num_tokens &&
                          generator.width == aggregate.width &&
                          generator.num_weights == aggregate.num_ways * aggregate.num_sources,
                      function, "the generator must make the weights of the sum",
                      shape_text(generator.num_tokens, generator.num_weights));
  const void* newest = aggregate.sources[aggregate.num_sources - 1];
  require<ValueError>(generator.hidden_size == 0 || generator.x == newest, function,
                      "x must be the newest source", "another");
  const bool is_whole = (problem.base == nullptr) == (problem.delta == nullptr) &&
                        (problem.base == nullptr || problem.newest == newest);
  require<ValueError>(is_whole, function,
                      "base, delta and the newest source as `newest` must come together",
                      "some of them");
}

void add_newest(const DepthStep& problem) {
  const std::int64_t count = problem.aggregate.num_tokens * problem.aggregate.width;
  const DType dtype = problem.aggregate.dtype;
  for (std::int64_t i = 0; i < count; ++i) {
    store_number(problem.newest, dtype, i,
                 load_number(problem.base, dtype, i) + load_number(problem.delta, dtype, i));
  }
}

}  // namespace

void connection_weights(const ConnectionWeights& problem, const ConnectionWeightsResult& result,
                        GemmFunction /*multiply*/, const Executor& /*executor*/) {
  check(problem, "connection_weights");
  connection_weights_reference(problem, result);
}

void connection_weights_backward(const ConnectionWeights& problem,
                                 const ConnectionWeightsGradients& gradients,
                                 GemmFunction /*multiply*/, const Executor& /*executor*/) {
  check(problem, "connection_weights_backward");
  connection_weights_backward_reference(problem, gradients);
}

void depth_aggregate(const DepthAggregate& problem, void* const* out,
                     const Executor& /*executor*/) {
  check(problem, "depth_aggregate");
  depth_aggregate_reference(problem, out);
}

void depth_aggregate_backward(const DepthAggregate& problem,
                              const DepthAggregateGradients& gradients,
                              const Executor& /*executor*/) {
  check(problem, gradients);
  depth_aggregate_backward_reference(problem, gradients);
}

void depth_step(const DepthStep& problem, const ConnectionWeightsResult& result, void* const* out,
                GemmFunction multiply, const Executor& executor) {
  check(problem, "depth_step");
  if (problem.base != nullptr) {
    add_newest(problem);
  }
  if (result.weights != nullptr) {
    connection_weights(problem.generator, result, multiply, executor);
  }
  depth_aggregate(problem.aggregate, out, executor);
}

void depth_step_backward(const DepthStep& problem, const DepthStepGradients& gradients,
                         GemmFunction multiply, const Executor& executor) {
  check(problem, "depth_step_backward");
  depth_aggregate_backward(problem.aggregate, gradients.aggregate, executor);
  ConnectionWeightsGradients generator = gradients.generator;
  generator.grad_weights = gradients.aggregate.grad_weights;
  generator.grad_x = gradients.aggregate.grad_sources == nullptr
                         ? nullptr
                         : gradients.aggregate.grad_sources[problem.aggregate.num_sources - 1];
  generator.adds_to_grad_x = true;
  connection_weights_backward(problem.generator, generator, multiply, executor);
}

}  // namespace paperlab::kernels
