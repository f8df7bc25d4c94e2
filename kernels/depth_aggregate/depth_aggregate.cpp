#include "kernels/depth_aggregate/depth_aggregate.h"

#include <memory>
#include <string>

#include "kernels/common/cpu_dtype.h"
#include "kernels/common/number.h"
#include "kernels/depth_aggregate/host.h"
#include "paperlab/core/error.h"

namespace paperlab::kernels {
namespace {

std::string shape_text(std::int64_t a, std::int64_t b) {
  return "[" + std::to_string(a) + ", " + std::to_string(b) + "]";
}

// The generator's parameters as cpu.h reads them.
class PackedGenerator {
 public:
  PackedGenerator(const ConnectionWeights& problem, const DepthAggregateCpu& kernel,
                  const Executor& executor)
      : w1_(packed_in_out(problem.w1, problem, problem.width, problem.hidden_size, kernel,
                          executor)),
        w2_(packed_in_out(problem.w2, problem, problem.hidden_size, problem.num_weights, kernel,
                          executor)),
        bias_(packed_rows(problem.bias, problem.dtype, 1, problem.num_weights, kernel, executor)) {}

  GeneratorPanels panels() const { return {floats(w1_), floats(w2_), floats(bias_)}; }

 private:
  Lines w1_;
  Lines w2_;
  Lines bias_;
};

void step_reference(const DepthStep& problem, const ConnectionWeightsResult& result,
                    void* const* out) {
  const DType dtype = problem.aggregate.dtype;
  const std::int64_t count = problem.aggregate.num_tokens * problem.aggregate.width;
  for (std::int64_t i = 0; i < count && problem.base != nullptr; ++i) {
    store_number(problem.newest, dtype, i,
                 load_number(problem.base, dtype, i) + load_number(problem.delta, dtype, i));
  }
  if (result.weights != nullptr) {
    connection_weights_reference(problem.generator, result);
  }
  depth_aggregate_reference(problem.aggregate, out);
}

// A block of tokens from end to end: the newest state, its weights if `result` has room for them,
// the streams if there is an `out`.
void run_step(const DepthStep& problem, const ConnectionWeightsResult& result, void* const* out,
              const Executor& executor) {
  const DepthAggregateCpu kernel = depth_aggregate_cpu();
  const std::int64_t num_tokens = problem.generator.num_tokens;
  const std::int64_t width = problem.generator.width;
  const bool generates = result.weights != nullptr;
  const std::int64_t size = generates ? tokens_of_generator(width) : tokens_of_task(width);
  const std::int64_t scratch_size = generates ? size * padded(problem.generator.hidden_size) : 0;
  const Lines scratch = take_floats(executor.num_workers() * scratch_size);
  const std::unique_ptr<PackedGenerator> packed =
      generates ? std::make_unique<PackedGenerator>(problem.generator, kernel, executor) : nullptr;
  const bool is_past_caches =
      out != nullptr && is_stored_past_caches(problem.aggregate.num_ways * num_tokens * width *
                                              bytes_of(problem.aggregate.dtype));
  for_blocks(executor, num_tokens, size, [&](TokenRange tokens, int worker) {
    if (problem.base != nullptr) {
      kernel.add(problem.aggregate.dtype, problem.base, problem.delta,
                 {tokens.begin * width, tokens.end * width}, problem.newest);
    }
    if (generates) {
      kernel.generate(problem.generator, packed->panels(), result, tokens,
                      floats(scratch) + worker * scratch_size);
    }
    if (out != nullptr) {
      kernel.forward(problem.aggregate, out, tokens, is_past_caches);
    }
  });
}

}  // namespace

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

void check(const DepthStep& problem, const ConnectionWeightsResult& result, const char* function) {
  check(problem, function);
  const bool is_whole = result.weights == nullptr ? problem.generator.hidden_size == 0
                                                  : problem.aggregate.weights == result.weights;
  require<ValueError>(is_whole, function, "the sum must have the weights that the generator writes",
                      "others");
}

void connection_weights(const ConnectionWeights& problem, const ConnectionWeightsResult& result,
                        const Executor& executor) {
  check(problem, "connection_weights");
  require_cpu_dtype(problem.dtype, "connection_weights");
  if (problem.dtype == DType::kFloat64) {
    connection_weights_reference(problem, result);
    return;
  }
  DepthStep step;
  step.generator = problem;
  run_step(step, result, nullptr, executor);
}

void depth_aggregate(const DepthAggregate& problem, void* const* out, const Executor& executor) {
  check(problem, "depth_aggregate");
  require_cpu_dtype(problem.dtype, "depth_aggregate");
  if (problem.dtype == DType::kFloat64) {
    depth_aggregate_reference(problem, out);
    return;
  }
  DepthStep step;
  step.generator.num_tokens = problem.num_tokens;
  step.generator.width = problem.width;
  step.aggregate = problem;
  run_step(step, {}, out, executor);
}

void depth_step(const DepthStep& problem, const ConnectionWeightsResult& result, void* const* out,
                const Executor& executor) {
  check(problem, result, "depth_step");
  require_cpu_dtype(problem.aggregate.dtype, "depth_step");
  if (problem.aggregate.dtype == DType::kFloat64) {
    step_reference(problem, result, out);
  } else {
    run_step(problem, result, out, executor);
  }
}

}  // namespace paperlab::kernels
