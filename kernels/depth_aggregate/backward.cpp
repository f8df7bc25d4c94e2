// The backward pass on the host: blocks of tokens, and what is added up over all of them.

#include <cstring>
#include <string>
#include <vector>

#include "kernels/common/cpu_dtype.h"
#include "kernels/common/number.h"
#include "kernels/depth_aggregate/depth_aggregate.h"
#include "kernels/depth_aggregate/host.h"
#include "paperlab/core/error.h"

namespace paperlab::kernels {
void check(const DepthAggregate& problem, const DepthAggregateGradients& gradients,
           const char* function) {
  check(problem, function);
  require<ValueError>(gradients.num_added >= 0 && gradients.num_added <= problem.num_sources,
                      function, "num_added must be 0.." + std::to_string(problem.num_sources),
                      std::to_string(gradients.num_added));
}

namespace {

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
        w1_(packed_out_in(problem.w1, problem, problem.width, hidden_, kernel, executor)),
        w2_(packed_out_in(problem.w2, problem, hidden_, problem.num_weights, kernel, executor)),
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

  // A parameter's gradient [in, out], or turned over as it is: the sum over the tokens of x [., in]
  // times y [., out].
  void product(std::int64_t in, std::int64_t out, std::int64_t num_tokens, const float* x,
               const float* y, float* to) const {
    const GemmOperand of_x = {x, 1, in};
    const GemmOperand of_y = {y, 1, out};
    if (problem_.is_transposed) {
      multiply_({DType::kFloat32, out, in, num_tokens, of_y, of_x, nullptr, to, in}, executor_);
    } else {
      multiply_({DType::kFloat32, in, out, num_tokens, of_x, of_y, nullptr, to, out}, executor_);
    }
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

void connection_weights_backward(const ConnectionWeights& problem,
                                 const ConnectionWeightsGradients& gradients, GemmFunction multiply,
                                 const Executor& executor) {
  check(problem, "connection_weights_backward");
  require_cpu_dtype(problem.dtype, "connection_weights_backward");
  if (problem.dtype == DType::kFloat64) {
    connection_weights_backward_reference(problem, gradients);
    return;
  }
  const DepthAggregateCpu kernel = depth_aggregate_cpu();
  GeneratorBackward(problem, gradients, nullptr, kernel, multiply, executor).run();
}

void depth_aggregate_backward(const DepthAggregate& problem,
                              const DepthAggregateGradients& gradients, const Executor& executor) {
  check(problem, gradients, "depth_aggregate_backward");
  require_cpu_dtype(problem.dtype, "depth_aggregate_backward");
  if (problem.dtype == DType::kFloat64) {
    depth_aggregate_backward_reference(problem, gradients);
    return;
  }
  const DepthAggregateCpu kernel = depth_aggregate_cpu();
  SumBackward(problem, gradients, kernel, executor).run_all();
}

void depth_step_backward(const DepthStep& problem, const DepthStepGradients& gradients,
                         GemmFunction multiply, const Executor& executor) {
  check(problem, "depth_step_backward");
  require_cpu_dtype(problem.aggregate.dtype, "depth_step_backward");
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
  const DepthAggregateCpu kernel = depth_aggregate_cpu();
  const SumBackward sum(problem.aggregate, gradients.aggregate, kernel, executor);
  GeneratorBackward(problem.generator, generator, &sum, kernel, multiply, executor).run();
}

}  // namespace paperlab::kernels
