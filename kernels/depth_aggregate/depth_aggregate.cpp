#include "kernels/depth_aggregate/depth_aggregate.h"

#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "kernels/common/dispatch.h"
#include "kernels/common/lines.h"
#include "kernels/common/number.h"
#include "kernels/depth_aggregate/cpu.h"
#include "kernels/depth_aggregate/tile.h"
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

void check(const DepthAggregate& problem, const DepthAggregateGradients& gradients,
           const char* function) {
  check(problem, function);
  require<ValueError>(gradients.num_added >= 0 && gradients.num_added <= problem.num_sources,
                      function, "num_added must be 0.." + std::to_string(problem.num_sources),
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

std::int64_t bytes_of(DType dtype) {
  return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2;
}

DepthAggregateCpu cpu() {
  return select_isa(generic::depth_aggregate_cpu, avx2::depth_aggregate_cpu,
                    avx512::depth_aggregate_cpu)();
}

float* floats(const Lines& lines) { return reinterpret_cast<float*>(lines.get()); }

Lines take_floats(std::int64_t count) {
  return take_lines(count * static_cast<std::int64_t>(sizeof(float)));
}

constexpr std::int64_t kTaskElements = 32768;  // of elementwise passes, ten microseconds of work

// Calls body(block, worker) for blocks of `size` of 0..count-1.
template <class Body>
void for_blocks(const Executor& executor, std::int64_t count, std::int64_t size, Body body) {
  parallel_for(executor, num_blocks(count, size),
               [&](std::int64_t task, int worker) { body(block_at(count, size, task), worker); });
}

// `count` numbers of `dtype` from element `first` on as float32: themselves, or copies in `copies`.
const float* as_float32(const void* data, DType dtype, std::int64_t first, std::int64_t count,
                        const DepthAggregateCpu& kernel, const Executor& executor, Lines& copies) {
  if (dtype == DType::kFloat32) {
    return static_cast<const float*>(data) + first;
  }
  copies = copies == nullptr ? take_floats(padded(count)) : std::move(copies);
  for_blocks(executor, count, kTaskElements, [&](TokenRange part, int /*worker*/) {
    kernel.pack(static_cast<const BFloat16*>(data) + first + part.begin, dtype, part.size(), {0, 1},
                floats(copies) + part.begin);
  });
  return floats(copies);
}

// The generator's parameters as cpu.h reads them.
class PackedGenerator {
 public:
  PackedGenerator(const ConnectionWeights& problem, const DepthAggregateCpu& kernel,
                  const Executor& executor)
      : w1_(pack(problem.w1, problem, problem.width, problem.hidden_size, kernel, executor)),
        w2_(pack(problem.w2, problem, problem.hidden_size, problem.num_weights, kernel, executor)),
        bias_(pack(problem.bias, problem, 1, problem.num_weights, kernel, executor)) {}

  GeneratorPanels panels() const { return {floats(w1_), floats(w2_), floats(bias_)}; }

 private:
  static Lines pack(const void* from, const ConnectionWeights& problem, std::int64_t rows,
                    std::int64_t columns, const DepthAggregateCpu& kernel,
                    const Executor& executor) {
    Lines lines = take_floats(rows * padded(columns));
    for_blocks(executor, rows, 1 + kTaskElements / (columns + 1),
               [&](TokenRange part, int /*worker*/) {
                 kernel.pack(from, problem.dtype, columns, part, floats(lines));
               });
    return lines;
  }

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
  const DepthAggregateCpu kernel = cpu();
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

// The gradients of a sum, a block of tokens at a time.
class SumBackward {
 public:
  SumBackward(const DepthAggregate& problem, const DepthAggregateGradients& gradients,
              const DepthAggregateCpu& kernel, const Executor& executor)
      : problem_(problem),
        gradients_(gradients),
        kernel_(kernel),
        executor_(executor),
        num_weights_(problem.num_ways * problem.num_sources),
        scratch_(take_floats(executor.num_workers() * backward_scratch(num_weights_))) {}

  void run(TokenRange tokens, int worker, float* sums) const {
    kernel_.backward(problem_, gradients_, tokens,
                     floats(scratch_) + worker * backward_scratch(num_weights_), sums);
  }

  // All tokens.
  void run_all() const {
    const std::int64_t size = tokens_of_task(problem_.width);
    const std::int64_t count = num_blocks(problem_.num_tokens, size);
    const bool is_static = problem_.token_stride == 0;
    const Lines sums = take_floats(is_static ? count * num_weights_ : 0);
    for_blocks(executor_, problem_.num_tokens, size, [&](TokenRange tokens, int worker) {
      run(tokens, worker, floats(sums) + (is_static ? tokens.begin / size * num_weights_ : 0));
    });
    if (is_static && gradients_.grad_weights != nullptr) {
      store_sum(floats(sums), count);
    }
  }

 private:
  // Where all tokens have the same weights: their gradient, the blocks' parts in order.
  void store_sum(const float* parts, std::int64_t count) const {
    std::vector<float> sums(static_cast<std::size_t>(num_weights_));
    kernel_.add_rows(parts, count, num_weights_, sums.data());
    for (std::int64_t c = 0; c < problem_.num_ways; ++c) {
      std::memcpy(static_cast<float*>(gradients_.grad_weights) + c * problem_.way_stride,
                  sums.data() + c * problem_.num_sources,
                  static_cast<std::size_t>(problem_.num_sources) * sizeof(float));
    }
  }

  const DepthAggregate& problem_;
  const DepthAggregateGradients& gradients_;
  const DepthAggregateCpu& kernel_;
  const Executor& executor_;
  std::int64_t num_weights_;
  Lines scratch_;
};

// A parameter's gradient, added up in float32 pass by pass.
class ParameterSum {
 public:
  ParameterSum(void* to, DType dtype, std::int64_t count) : to_(to), dtype_(dtype), count_(count) {
    if (is_wanted()) {
      sum_ = take_floats(count);
      std::memset(sum_.get(), 0, static_cast<std::size_t>(count) * sizeof(float));
    }
  }

  bool is_wanted() const { return to_ != nullptr; }
  float* data() const { return floats(sum_); }

  // write(to) writes what a pass has.
  template <class Write>
  void add(bool is_first, const DepthAggregateCpu& kernel, Write write) {
    if (is_first) {
      write(data());
      return;
    }
    part_ = part_ == nullptr ? take_floats(count_) : std::move(part_);
    write(floats(part_));
    kernel.add_rows(floats(part_), 1, count_, data());
  }

  void finish(const DepthAggregateCpu& kernel) const {
    if (is_wanted()) {
      kernel.narrow(data(), count_, dtype_, to_);
    }
  }

 private:
  void* to_;
  DType dtype_;
  std::int64_t count_;
  Lines sum_;
  Lines part_;
};

// The generator's gradients, a pass of tokens at a time; the products over tokens are injected.
class GeneratorBackward {
 public:
  // `sum` is absent, or comes first, block by block.
  GeneratorBackward(const ConnectionWeights& problem, const ConnectionWeightsGradients& gradients,
                    const SumBackward* sum, const DepthAggregateCpu& kernel, GemmFunction multiply,
                    const Executor& executor)
      : problem_(problem),
        gradients_(gradients),
        sum_(sum),
        kernel_(kernel),
        multiply_(multiply),
        executor_(executor),
        hidden_(problem.hidden_size),
        block_(tokens_of_generator(problem.width)),
        grad_w1_(gradients.grad_w1, problem.dtype, problem.width * hidden_),
        grad_w2_(gradients.grad_w2, problem.dtype, hidden_ * problem.num_weights),
        grad_bias_(gradients.grad_bias, problem.dtype, problem.num_weights),
        w1_(pack_transposed(problem.w1, problem.width, hidden_)),
        w2_(pack_transposed(problem.w2, hidden_, problem.num_weights)),
        scratch_(take_floats(executor.num_workers() * generate_scratch(block_, problem.width))) {}

  void run() {
    const std::int64_t size = num_blocks(tokens_of_pass(problem_.width), block_) * block_;
    const std::int64_t rows = problem_.num_tokens < size ? problem_.num_tokens : size;
    h_ = take_floats(rows * hidden_);
    grad_z_ = take_floats(rows * hidden_);
    for (std::int64_t begin = 0; begin < problem_.num_tokens; begin += size) {
      const TokenRange tokens = block_at(problem_.num_tokens, size, begin / size);
      for_blocks(executor_, tokens.size(), block_, [&](TokenRange part, int worker) {
        run_block({begin + part.begin, begin + part.end}, begin, worker);
      });
      add_parameters(tokens);
    }
    grad_w1_.finish(kernel_);
    grad_w2_.finish(kernel_);
    grad_bias_.finish(kernel_);
  }

 private:
  Lines pack_transposed(const void* from, std::int64_t rows, std::int64_t columns) const {
    Lines lines = take_floats(columns * padded(rows));
    for_blocks(executor_, columns, 16, [&](TokenRange range, int /*worker*/) {
      kernel_.pack_transposed(from, problem_.dtype, rows, columns, range, floats(lines));
    });
    return lines;
  }

  void run_block(TokenRange tokens, std::int64_t begin, int worker) const {
    if (sum_ != nullptr) {
      sum_->run(tokens, worker, nullptr);
    }
    if (hidden_ > 0) {
      kernel_.generate_backward(
          problem_, gradients_, {floats(w1_), floats(w2_)}, {floats(h_), floats(grad_z_), begin},
          tokens, floats(scratch_) + worker * generate_scratch(block_, problem_.width));
    } else if (gradients_.grad_x != nullptr && !gradients_.adds_to_grad_x) {
      const std::int64_t row = problem_.width * bytes_of(problem_.dtype);
      std::memset(static_cast<std::byte*>(gradients_.grad_x) + tokens.begin * row, 0,
                  static_cast<std::size_t>(tokens.size() * row));
    }
  }

  // to [m, n] = sum over the tokens of row m of a and row n of b, both [tokens, .].
  void product(std::int64_t m, std::int64_t n, std::int64_t num_tokens, const float* a,
               const float* b, float* to) const {
    multiply_({DType::kFloat32, m, n, num_tokens, {a, 1, m}, {b, 1, n}, nullptr, to, n}, executor_);
  }

  void add_parameters(TokenRange tokens) {
    const std::int64_t count = problem_.num_weights;
    const std::int64_t width = problem_.width;
    const bool is_first = tokens.begin == 0;
    const auto* grad_weights =
        static_cast<const float*>(gradients_.grad_weights) + tokens.begin * count;
    if (grad_bias_.is_wanted()) {
      kernel_.add_rows(grad_weights, tokens.size(), count, grad_bias_.data());
    }
    if (grad_w2_.is_wanted() && hidden_ > 0) {
      grad_w2_.add(is_first, kernel_, [&](float* to) {
        product(hidden_, count, tokens.size(), floats(h_), grad_weights, to);
      });
    }
    if (grad_w1_.is_wanted() && hidden_ > 0) {
      const float* x = as_float32(problem_.x, problem_.dtype, tokens.begin * width,
                                  tokens.size() * width, kernel_, executor_, x_);
      grad_w1_.add(is_first, kernel_, [&](float* to) {
        product(width, hidden_, tokens.size(), x, floats(grad_z_), to);
      });
    }
  }

  const ConnectionWeights& problem_;
  const ConnectionWeightsGradients& gradients_;
  const SumBackward* sum_;
  const DepthAggregateCpu& kernel_;
  GemmFunction multiply_;
  const Executor& executor_;
  std::int64_t hidden_;
  std::int64_t block_;
  ParameterSum grad_w1_;
  ParameterSum grad_w2_;
  ParameterSum grad_bias_;
  Lines w1_;
  Lines w2_;
  Lines scratch_;
  Lines h_;
  Lines grad_z_;
  Lines x_;  // bfloat16: a pass's states in float32
};

// Of the newest source, or none.
void* grad_of_newest(const DepthStep& problem, const DepthStepGradients& gradients) {
  return gradients.aggregate.grad_sources == nullptr
             ? nullptr
             : gradients.aggregate.grad_sources[problem.aggregate.num_sources - 1];
}

// Those of the generator, with what the sum has.
ConnectionWeightsGradients generator_gradients(const DepthStep& problem,
                                               const DepthStepGradients& gradients) {
  ConnectionWeightsGradients generator = gradients.generator;
  generator.grad_weights = gradients.aggregate.grad_weights;
  generator.grad_x = grad_of_newest(problem, gradients);
  generator.adds_to_grad_x = true;
  return generator;
}

// Without a generator the bias's gradient is that of the weights.
void store_grad_bias(const DepthStep& problem, const DepthStepGradients& gradients) {
  if (gradients.generator.grad_bias == nullptr) {
    return;
  }
  const DepthAggregate& aggregate = problem.aggregate;
  for (std::int64_t i = 0; i < aggregate.num_ways * aggregate.num_sources; ++i) {
    const std::int64_t at =
        i / aggregate.num_sources * aggregate.way_stride + i % aggregate.num_sources;
    store_number(
        gradients.generator.grad_bias, aggregate.dtype, i,
        load_number(gradients.aggregate.grad_weights, statistics_dtype(aggregate.dtype), at));
  }
}

}  // namespace

void connection_weights(const ConnectionWeights& problem, const ConnectionWeightsResult& result,
                        GemmFunction /*multiply*/, const Executor& executor) {
  check(problem, "connection_weights");
  if (problem.dtype == DType::kFloat64) {
    connection_weights_reference(problem, result);
    return;
  }
  DepthStep step;
  step.generator = problem;
  run_step(step, result, nullptr, executor);
}

void connection_weights_backward(const ConnectionWeights& problem,
                                 const ConnectionWeightsGradients& gradients, GemmFunction multiply,
                                 const Executor& executor) {
  check(problem, "connection_weights_backward");
  if (problem.dtype == DType::kFloat64) {
    connection_weights_backward_reference(problem, gradients);
    return;
  }
  const DepthAggregateCpu kernel = cpu();
  GeneratorBackward(problem, gradients, nullptr, kernel, multiply, executor).run();
}

void depth_aggregate(const DepthAggregate& problem, void* const* out, const Executor& executor) {
  check(problem, "depth_aggregate");
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

void depth_aggregate_backward(const DepthAggregate& problem,
                              const DepthAggregateGradients& gradients, const Executor& executor) {
  check(problem, gradients, "depth_aggregate_backward");
  if (problem.dtype == DType::kFloat64) {
    depth_aggregate_backward_reference(problem, gradients);
    return;
  }
  const DepthAggregateCpu kernel = cpu();
  SumBackward(problem, gradients, kernel, executor).run_all();
}

void depth_step(const DepthStep& problem, const ConnectionWeightsResult& result, void* const* out,
                GemmFunction /*multiply*/, const Executor& executor) {
  check(problem, "depth_step");
  const bool is_whole = result.weights == nullptr ? problem.generator.hidden_size == 0
                                                  : problem.aggregate.weights == result.weights;
  require<ValueError>(is_whole, "depth_step",
                      "the sum must have the weights that the generator writes", "others");
  if (problem.aggregate.dtype == DType::kFloat64) {
    step_reference(problem, result, out);
  } else {
    run_step(problem, result, out, executor);
  }
}

void depth_step_backward(const DepthStep& problem, const DepthStepGradients& gradients,
                         GemmFunction multiply, const Executor& executor) {
  check(problem, "depth_step_backward");
  check(problem.aggregate, gradients.aggregate, "depth_step_backward");
  const ConnectionWeightsGradients generator = generator_gradients(problem, gradients);
  if (problem.aggregate.token_stride == 0) {
    depth_aggregate_backward(problem.aggregate, gradients.aggregate, executor);
    store_grad_bias(problem, gradients);
    return;
  }
  if (problem.aggregate.dtype == DType::kFloat64) {
    depth_aggregate_backward_reference(problem.aggregate, gradients.aggregate);
    connection_weights_backward_reference(problem.generator, generator);
    return;
  }
  const DepthAggregateCpu kernel = cpu();
  const SumBackward sum(problem.aggregate, gradients.aggregate, kernel, executor);
  GeneratorBackward(problem.generator, generator, &sum, kernel, multiply, executor).run();
}

}  // namespace paperlab::kernels
