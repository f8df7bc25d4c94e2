#pragma once
// Which blocks of threads the GPU's forms launch, in which order and on which memory. Launch starts
// them: on the device (cuda_launch.h), one after the other on the host (tests), or nowhere, to
// learn how much memory they need.
//
//   struct Launch {
//     template <class T> void sum(const SumTask&, std::int64_t num_blocks) const;
//     template <class T> void gradient(const GradientTask&, std::int64_t num_blocks) const;
//     template <class T> void norm(const NormTask&, std::int64_t num_blocks) const;
//     template <class T> void product(const ProductTask&, std::int64_t num_blocks) const;
//     template <class Number> void dots(const DotTask&, std::int64_t num_blocks) const;
//     template <class Number> void columns(const ColumnTask&, std::int64_t num_blocks) const;
//     void zero(void* data, std::int64_t num_bytes) const;
//   };

#include <cstddef>

#include "kernels/depth_aggregate/block.h"
#include "kernels/depth_aggregate/block_backward.h"
#include "kernels/depth_aggregate/block_rows.h"
#include "kernels/depth_aggregate/products.h"

namespace paperlab::kernels::depth {

// Pieces of a workspace, or, without one, how large it must be.
class Pieces {
 public:
  explicit Pieces(void* workspace) : data_(static_cast<std::byte*>(workspace)) {}

  void* take(std::int64_t num_bytes) {
    std::byte* piece = data_ == nullptr ? nullptr : data_ + used_;
    used_ += num_blocks(num_bytes, kAligned) * kAligned;
    return piece;
  }
  std::int64_t used() const { return used_; }

 private:
  static constexpr std::int64_t kAligned = 256;

  std::byte* data_;
  std::int64_t used_ = 0;
};

struct NoLaunch {
  template <class T>
  void sum(const SumTask& /*task*/, std::int64_t /*num_blocks*/) const {}
  template <class T>
  void gradient(const GradientTask& /*task*/, std::int64_t /*num_blocks*/) const {}
  template <class T>
  void norm(const NormTask& /*task*/, std::int64_t /*num_blocks*/) const {}
  template <class T>
  void product(const ProductTask& /*task*/, std::int64_t /*num_blocks*/) const {}
  template <class Number>
  void dots(const DotTask& /*task*/, std::int64_t /*num_blocks*/) const {}
  template <class Number>
  void columns(const ColumnTask& /*task*/, std::int64_t /*num_blocks*/) const {}
  void zero(void* /*data*/, std::int64_t /*num_bytes*/) const {}
};

// Rows of a matrix that are added up by one block.
constexpr std::int64_t kRowsOfPart = 512;

template <class T>
bool are_whole(std::int64_t width, const void* const* data, std::int64_t count) {
  bool is_whole = true;
  for (std::int64_t i = 0; i < count; ++i) {
    is_whole = is_whole && has_whole_packs<T>(width, {data[i]}, {});
  }
  return is_whole;
}

// For the dtype of T. Everything is as depth_aggregate.h says, with pointers of the device.
template <class T, class Launch>
class DepthPlan {
 public:
  DepthPlan(const Launch& launch, void* workspace) : launch_(launch), pieces_(workspace) {}

  std::int64_t num_bytes() const { return pieces_.used(); }

  void weights(const ConnectionWeights& problem, const ConnectionWeightsResult& result) {
    DepthStep step;
    step.generator = problem;
    make_weights(step, result);
  }

  void sum(const DepthAggregate& problem, void* const* out) const {
    for (std::int64_t way = 0; way < problem.num_ways; way += kMostWays) {
      SumTask task{};
      const std::int64_t packs = num_packs<T>(problem.width);
      task.weights = weights_of(problem, way, 0);
      task.num_tokens = problem.num_tokens;
      task.width = problem.width;
      task.packs_of_token = packs;
      task.num_sources = static_cast<int>(problem.num_sources);
      task.num_ways = static_cast<int>(smaller(problem.num_ways - way, kMostWays));
      task.most_tokens = tokens_of_packs(packs);
      for (std::int64_t j = 0; j < problem.num_sources; ++j) {
        task.sources[j] = problem.sources[j];
      }
      for (int c = 0; c < task.num_ways; ++c) {
        task.out[c] = out[way + c];
      }
      task.is_whole = are_whole<T>(problem.width, task.sources, task.num_sources) &&
                      are_whole<T>(problem.width, task.out, task.num_ways);
      launch_.template sum<T>(task, num_blocks(problem.num_tokens * packs, kSumThreads));
    }
  }

  void step(const DepthStep& problem, const ConnectionWeightsResult& result, void* const* out) {
    if (result.weights != nullptr) {
      make_weights(problem, result);
    } else if (problem.base != nullptr) {
      norm(problem, nullptr);
    }
    sum(problem.aggregate, out);
  }

  void sum_backward(const DepthAggregate& problem, const DepthAggregateGradients& gradients) {
    sum_gradients(problem, gradients, nullptr);
  }

  void weights_backward(const ConnectionWeights& problem,
                        const ConnectionWeightsGradients& gradients) {
    if (problem.hidden_size > 0) {
      matrix_gradients(problem, gradients);
    } else if (gradients.grad_x != nullptr && !gradients.adds_to_grad_x) {
      launch_.zero(gradients.grad_x,
                   problem.num_tokens * problem.width * static_cast<std::int64_t>(sizeof(T)));
    }
    if (gradients.grad_bias != nullptr) {
      add_columns(gradients.grad_weights, problem.num_tokens, problem.num_weights,
                  {gradients.grad_bias, problem.dtype, problem.num_weights, 0});
    }
  }

  void step_backward(const DepthStep& problem, const DepthStepGradients& gradients) {
    if (problem.aggregate.token_stride == 0) {
      sum_gradients(problem.aggregate, gradients.aggregate, gradients.generator.grad_bias);
      return;
    }
    sum_gradients(problem.aggregate, gradients.aggregate, nullptr);
    ConnectionWeightsGradients generator = gradients.generator;
    generator.grad_weights = gradients.aggregate.grad_weights;
    generator.grad_x = gradients.aggregate.grad_sources == nullptr
                           ? nullptr
                           : gradients.aggregate.grad_sources[problem.aggregate.num_sources - 1];
    generator.adds_to_grad_x = true;
    weights_backward(problem.generator, generator);
  }

 private:
  using Number = NumberOf<T>;
  static constexpr DType kStatistics = sizeof(T) == 8 ? DType::kFloat64 : DType::kFloat32;

  // Where sums of columns go (ColumnTask).
  struct ColumnPlace {
    void* to;
    DType dtype;
    std::int64_t group;
    std::int64_t group_stride;
  };

  void* take(std::int64_t count) {
    return pieces_.take(count * static_cast<std::int64_t>(sizeof(Number)));
  }

  // From way `way` and source `source` on.
  static WeightTable weights_of(const DepthAggregate& problem, std::int64_t way,
                                std::int64_t source) {
    const std::int64_t bytes =
        problem.weights_dtype == DType::kFloat32 ? 4 : static_cast<std::int64_t>(sizeof(T));
    return {static_cast<const std::byte*>(problem.weights) +
                (way * problem.way_stride + source) * bytes,
            problem.weights_dtype, problem.token_stride, problem.way_stride};
  }

  void norm(const DepthStep& problem, void* inverse_rms) const {
    const ConnectionWeights& generator = problem.generator;
    NormTask task{problem.base,         problem.delta,   problem.newest, generator.x, inverse_rms,
                  generator.num_tokens, generator.width, generator.eps,  false};
    const void* of_rows[] = {problem.base, problem.delta, problem.newest, generator.x};
    task.is_whole = are_whole<T>(generator.width, of_rows, 4);
    launch_.template norm<T>(task, num_blocks(generator.num_tokens, kRowsOfBlock));
  }

  void multiply(const ProductTask& task) const {
    launch_.template product<T>(task, task.num_splits() * task.num_tiles());
  }

  void make_weights(const DepthStep& step, const ConnectionWeightsResult& result) {
    const ConnectionWeights& problem = step.generator;
    const std::int64_t tokens = problem.num_tokens;
    const std::int64_t hidden = problem.hidden_size;
    void* h = take(tokens * hidden);
    if (hidden > 0) {
      void* inverse_rms = result.inverse_rms == nullptr ? take(tokens) : result.inverse_rms;
      norm(step, inverse_rms);
      ProductTask of_z = product_of(problem, ProductKind::kZ, tokens, hidden, problem.width);
      of_z.a = operand(problem.x, problem.dtype, problem.width, 1);
      of_z.b = of_parameter(problem, problem.w1, problem.width, hidden, true);
      of_z.to = result.z == nullptr ? take(tokens * hidden) : result.z;
      of_z.h = h;
      of_z.inverse_rms = inverse_rms;
      multiply(of_z);
    } else if (step.base != nullptr) {
      norm(step, nullptr);
    }
    ProductTask task =
        product_of(problem, ProductKind::kWeights, tokens, problem.num_weights, hidden);
    task.a = operand(h, kStatistics, hidden, 1);
    task.b = of_parameter(problem, problem.w2, hidden, problem.num_weights, true);
    task.to = result.weights;
    task.bias = problem.bias;
    multiply(task);
  }

  // Sums over the rows of from [rows, columns].
  void add_columns(const void* from, std::int64_t rows, std::int64_t columns,
                   const ColumnPlace& place) {
    ColumnTask task{from,     rows,        columns,     kRowsOfPart,
                    place.to, place.dtype, place.group, place.group_stride};
    if (task.num_parts() > 1) {
      ColumnTask parts = task;
      parts.to = take(task.num_parts() * columns);
      parts.to_dtype = kStatistics;
      parts.group = columns;
      launch_.template columns<Number>(parts, parts.num_parts() * parts.num_tiles());
      task.from = parts.to;
      task.rows = task.rows_of_part = parts.num_parts();
    }
    launch_.template columns<Number>(task, task.num_tiles());
  }

  // grad_bias: absent, or the gradient [C J] of weights that all tokens share, as the sources.
  void sum_gradients(const DepthAggregate& problem, const DepthAggregateGradients& gradients,
                     void* grad_bias) {
    const std::int64_t num_weights = problem.num_ways * problem.num_sources;
    const bool is_static = problem.token_stride == 0;
    const bool has_sums = is_static && (gradients.grad_weights != nullptr || grad_bias != nullptr);
    void* of_tokens = has_sums ? take(problem.num_tokens * num_weights) : nullptr;
    const GradientShape shape = gradient_shape(num_packs<T>(problem.width));
    for (std::int64_t way = 0; way < problem.num_ways; way += kMostWays) {
      for (std::int64_t j = 0; j < problem.num_sources; j += sources_of_launch<Number>(shape)) {
        GradientTask task = gradients_of(problem, gradients, shape, way, j);
        if (is_static) {
          set_grad_weights(task, of_tokens, num_weights, problem.num_sources, way, j);
        } else {
          set_grad_weights(task, gradients.grad_weights, problem.token_stride, problem.way_stride,
                           way, j);
        }
        launch_.template gradient<T>(task, num_blocks(problem.num_tokens, shape.tokens_of_block()));
      }
    }
    if (has_sums && gradients.grad_weights != nullptr) {
      add_columns(of_tokens, problem.num_tokens, num_weights,
                  {gradients.grad_weights, kStatistics, problem.num_sources, problem.way_stride});
    }
    if (has_sums && grad_bias != nullptr) {
      add_columns(of_tokens, problem.num_tokens, num_weights,
                  {grad_bias, problem.dtype, num_weights, 0});
    }
  }

  static void set_grad_weights(GradientTask& task, void* to, std::int64_t token_stride,
                               std::int64_t way_stride, std::int64_t way, std::int64_t source) {
    task.grad_weights =
        to == nullptr ? nullptr : static_cast<Number*>(to) + way * way_stride + source;
    task.grad_token_stride = token_stride;
    task.grad_way_stride = way_stride;
  }

  // Ways and sources from `way` and `source` on. Further ways add to what the first ones left.
  static GradientTask gradients_of(const DepthAggregate& problem,
                                   const DepthAggregateGradients& gradients,
                                   const GradientShape& shape, std::int64_t way,
                                   std::int64_t source) {
    GradientTask task{};
    task.weights = weights_of(problem, way, source);
    task.num_tokens = problem.num_tokens;
    task.width = problem.width;
    task.shape = shape;
    task.num_sources =
        static_cast<int>(smaller(problem.num_sources - source, sources_of_launch<Number>(shape)));
    task.num_ways = static_cast<int>(smaller(problem.num_ways - way, kMostWays));
    const std::int64_t num_added = way > 0 ? problem.num_sources : gradients.num_added;
    task.num_added = static_cast<int>(num_added < source ? 0 : num_added - source);
    for (int j = 0; j < task.num_sources; ++j) {
      task.sources[j] = problem.sources[source + j];
      task.grad_sources[j] =
          gradients.grad_sources == nullptr ? nullptr : gradients.grad_sources[source + j];
    }
    for (int c = 0; c < task.num_ways; ++c) {
      task.grad_out[c] = gradients.grad_out[way + c];
    }
    task.is_whole = are_whole<T>(problem.width, task.sources, task.num_sources) &&
                    are_whole<T>(problem.width, task.grad_sources, task.num_sources) &&
                    are_whole<T>(problem.width, task.grad_out, task.num_ways);
    return task;
  }

  // A parameter's gradient [in, out], or turned over as it is: the sum over the tokens of x(i, n)
  // y(j, n), splits of them in order.
  void add_tokens(const ConnectionWeights& problem, std::int64_t in, std::int64_t out,
                  const ProductOperand& x, const ProductOperand& y, void* to) {
    ProductTask task = product_of(problem, ProductKind::kPlain, problem.is_transposed ? out : in,
                                  problem.is_transposed ? in : out, problem.num_tokens);
    task.a = problem.is_transposed ? y : x;
    task.b = problem.is_transposed ? x : y;
    task.terms_of_split = tokens_of_split(problem.num_tokens);
    if (task.num_splits() == 1) {
      task.to = to;
      task.to_dtype = problem.dtype;
      multiply(task);
      return;
    }
    task.to = take(task.num_splits() * in * out);
    multiply(task);
    add_columns(task.to, task.num_splits(), in * out, {to, problem.dtype, in * out, 0});
  }

  void matrix_gradients(const ConnectionWeights& problem,
                        const ConnectionWeightsGradients& gradients) {
    const std::int64_t tokens = problem.num_tokens;
    const std::int64_t hidden = problem.hidden_size;
    const std::int64_t count = problem.num_weights;
    void* grad_z = take(tokens * hidden);
    void* h = gradients.grad_w2 == nullptr ? nullptr : take(tokens * hidden);
    ProductTask of_z = product_of(problem, ProductKind::kGradZ, tokens, hidden, count);
    of_z.a = operand(gradients.grad_weights, kStatistics, count, 1);
    of_z.b = of_parameter(problem, problem.w2, hidden, count, false);
    of_z.to = grad_z;
    of_z.z = gradients.z;
    of_z.h = h;
    of_z.inverse_rms = gradients.inverse_rms;
    multiply(of_z);
    if (gradients.grad_x != nullptr) {
      add_grad_x(problem, gradients, grad_z);
    }
    if (gradients.grad_w1 != nullptr) {
      add_tokens(problem, problem.width, hidden,
                 operand(problem.x, problem.dtype, 1, problem.width),
                 operand(grad_z, kStatistics, 1, hidden), gradients.grad_w1);
    }
    if (gradients.grad_w2 != nullptr) {
      add_tokens(problem, hidden, count, operand(h, kStatistics, 1, hidden),
                 operand(gradients.grad_weights, kStatistics, 1, count), gradients.grad_w2);
    }
  }

  void add_grad_x(const ConnectionWeights& problem, const ConnectionWeightsGradients& gradients,
                  void* grad_z) {
    const std::int64_t tokens = problem.num_tokens;
    const std::int64_t hidden = problem.hidden_size;
    void* of_x = take(tokens);
    launch_.template dots<Number>(
        {grad_z, gradients.z, gradients.inverse_rms, of_x, tokens, hidden, problem.width},
        num_blocks(tokens, kRowsOfBlock));
    ProductTask task = product_of(problem, ProductKind::kGradX, tokens, problem.width, hidden);
    task.a = operand(grad_z, kStatistics, hidden, 1);
    task.b = of_parameter(problem, problem.w1, problem.width, hidden, false);
    task.to = gradients.grad_x;
    task.to_dtype = problem.dtype;
    task.x = problem.x;
    task.of_x = of_x;
    task.adds = gradients.adds_to_grad_x;
    multiply(task);
  }

  const Launch& launch_;
  Pieces pieces_;
};

}  // namespace paperlab::kernels::depth
