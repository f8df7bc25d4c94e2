#pragma once
// The gradients of a run of tokens' streams.
#include "kernels/depth_aggregate/cpu_grid.h"

namespace paperlab::kernels::PAPERLAB_ISA {
namespace {

// A run of a source, and the one that is fetched meanwhile. Ways are those whose gradient is there.
template <class T>
struct SourceGradient {
  const T* x;
  const T* next;
  T* grad;
  const T* next_grad;
  bool is_added;
  const T* of_sum[kMostWays];
  float weight[kMostWays];
  float* products[kMostWays];  // a vector each
  bool adds_products;
  std::int64_t columns;
};

template <class T, int kWays>
void add_source(const SourceGradient<T>& of) {
  VecF weight[kWays];
  VecF products[kWays];
  repeat<kWays>([&](int c) {
    weight[c] = set1(of.weight[c]);
    products[c] = zero();
  });
  const bool is_added = of.is_added;
  for_each_vector(of.columns, [&](std::int64_t d, std::int64_t count) {
    __builtin_prefetch(of.next + d, 0, 3);
    __builtin_prefetch(of.next_grad + d, 1, 3);
    const VecF x = load_row(of.x + d, count);
    VecF grad = is_added ? load_row(of.grad + d, count) : zero();
    repeat<kWays>([&](int c) {
      const VecF of_sum = load_row(of.of_sum[c] + d, count);
      grad = fma(weight[c], of_sum, grad);
      products[c] = fma(x, of_sum, products[c]);
    });
    store_row(of.grad + d, count, grad);
  });
  repeat<kWays>([&](int c) {
    float* to = of.products[c];
    store(to, of.adds_products ? load(to) + products[c] : products[c]);
  });
}

// The sum of each of `count` vectors; both arrays have room for whole squares.
inline void sum_vectors(const float* vectors, std::int64_t count, float* sums) {
  for (std::int64_t i = 0; i < count; i += kFloatLanes) {
    alignas(64) float square[kFloatLanes * kFloatLanes];
    transpose_square(vectors + i * kFloatLanes, kFloatLanes, square, kFloatLanes);
    VecF sum = load(square);
    for (std::int64_t lane = 1; lane < kFloatLanes; ++lane) {
      sum += load(square + lane * kFloatLanes);
    }
    store(sums + i, sum);
  }
}

// The ways whose gradient is there, from `first` on.
struct PresentWays {
  std::int64_t way[kMostWays];
  int count;
  std::int64_t next;  // where to go on

  PresentWays(const DepthAggregate& problem, const DepthAggregateGradients& gradients,
              std::int64_t first)
      : way{}, count(0), next(first) {
    for (; next < problem.num_ways && count < kMostWays; ++next) {
      if (gradients.grad_out[next] != nullptr) {
        way[count++] = next;
      }
    }
  }
};

template <class T>
class TokenGradients {
 public:
  TokenGradients(const DepthAggregate& problem, const DepthAggregateGradients& gradients,
                 float* scratch)
      : problem_(problem),
        gradients_(gradients),
        grid_(problem, kGradientRun, 1),
        num_weights_(problem.num_ways * problem.num_sources),
        is_static_(problem.token_stride == 0),
        vectors_(scratch),
        sums_(scratch + kRunTokens * vectors_of_token()) {}

  void run(TokenRange tokens, float* sums) {
    const std::int64_t room = least(grid_.block, tokens.size()) * vectors_of_token();
    __builtin_memset(vectors_, 0, static_cast<std::size_t>(room) * sizeof(float));
    for (std::int64_t n = tokens.begin; n < tokens.end; n += grid_.block) {
      const TokenRange block = {n, least(n + grid_.block, tokens.end)};
      bool is_added = false;
      std::int64_t way = 0;
      do {
        const PresentWays ways(problem_, gradients_, way);
        way = ways.next;
        add(ways, block, is_added, n > tokens.begin);
        is_added = true;
      } while (way < problem_.num_ways);
      for (std::int64_t i = 0; i < block.size(); ++i) {
        if (!is_static_ && gradients_.grad_weights != nullptr) {
          store_weights(n + i, i);
        }
      }
    }
    if (is_static_) {
      sum_vectors(vectors_, num_weights_, sums_);
      __builtin_memcpy(sums, sums_, static_cast<std::size_t>(num_weights_) * sizeof(float));
    }
  }

 private:
  std::int64_t vectors_of_token() const { return padded(num_weights_) * 16; }

  void add(const PresentWays& ways, TokenRange block, bool is_added, bool adds_products) {
    switch (ways.count) {
      case 0:
        return is_added ? void() : clear_sources(block);
      case 1:
        return add<1>(ways, block, is_added, adds_products);
      case 2:
        return add<2>(ways, block, is_added, adds_products);
      case 3:
        return add<3>(ways, block, is_added, adds_products);
      default:
        return add<4>(ways, block, is_added, adds_products);
    }
  }

  template <int kWays>
  void add(const PresentWays& ways, TokenRange block, bool is_added, bool adds_products) {
    SourceGradient<T> of{};
    Place ahead = grid_.after({block.begin, 0, 0});
    for (Place at = {block.begin, 0, 0}; at.token == block.begin;
         at = grid_.after(at), ahead = grid_.after(ahead)) {
      of.columns = grid_.columns(at);
      for (std::int64_t i = 0; i < block.size(); ++i) {
        const std::int64_t n = block.begin + i;
        const std::int64_t element = n * grid_.width + at.column;
        set_source(at.group, element, is_added, of);
        set_next(ahead, i, of);
        of.adds_products = at.column > 0 || (is_static_ && (adds_products || i > 0));
        for (int c = 0; c < kWays; ++c) {
          of.of_sum[c] = static_cast<const T*>(gradients_.grad_out[ways.way[c]]) + element;
          of.weight[c] = weight_of(problem_, n, ways.way[c], at.group);
          of.products[c] = vectors_ + (is_static_ ? 0 : i) * vectors_of_token() +
                           (ways.way[c] * problem_.num_sources + at.group) * kFloatLanes;
        }
        add_source<T, kWays>(of);
      }
    }
  }

  // Without any gradient of a stream.
  void clear_sources(TokenRange block) {
    for (std::int64_t j = gradients_.num_added; j < problem_.num_sources; ++j) {
      if (grad_of(j) != nullptr) {
        __builtin_memset(grad_of(j) + block.begin * problem_.width, 0,
                         static_cast<std::size_t>(block.size() * problem_.width) * sizeof(T));
      }
    }
  }

  T* grad_of(std::int64_t source) const {
    return gradients_.grad_sources == nullptr ? nullptr
                                              : static_cast<T*>(gradients_.grad_sources[source]);
  }

  void set_source(std::int64_t source, std::int64_t element, bool is_added, SourceGradient<T>& of) {
    of.x = source_at<T>(problem_, source, element);
    T* grad = grad_of(source);
    of.grad = grad == nullptr ? unwanted_ : grad + element;
    of.is_added = grad != nullptr && (is_added || source < gradients_.num_added);
  }

  void set_next(Place ahead, std::int64_t i, SourceGradient<T>& of) const {
    const std::int64_t element =
        least(ahead.token + i, problem_.num_tokens - 1) * grid_.width + ahead.column;
    of.next = source_at<T>(problem_, ahead.group, element);
    const T* grad = grad_of(ahead.group);
    of.next_grad = grad == nullptr ? unwanted_ : grad + element;
  }

  // Of token n, whose vectors are the i-th.
  void store_weights(std::int64_t n, std::int64_t i) {
    sum_vectors(vectors_ + i * vectors_of_token(), num_weights_, sums_);
    auto* to = static_cast<float*>(gradients_.grad_weights) + n * problem_.token_stride;
    for (std::int64_t c = 0; c < problem_.num_ways; ++c) {
      __builtin_memcpy(to + c * problem_.way_stride, sums_ + c * problem_.num_sources,
                       static_cast<std::size_t>(problem_.num_sources) * sizeof(float));
    }
  }

  const DepthAggregate& problem_;
  const DepthAggregateGradients& gradients_;
  Grid grid_;
  std::int64_t num_weights_;
  bool is_static_;
  float* vectors_;  // [tokens of a block, or 1] of [C J] vectors; those of absent ways stay 0
  float* sums_;
  T unwanted_[kGradientRun] = {};
};

inline void backward(const DepthAggregate& problem, const DepthAggregateGradients& gradients,
                     TokenRange tokens, float* scratch, float* sums) {
  if (problem.dtype == DType::kFloat32) {
    TokenGradients<float>(problem, gradients, scratch).run(tokens, sums);
  } else {
    TokenGradients<std::uint16_t>(problem, gradients, scratch).run(tokens, sums);
  }
}

}  // namespace
}  // namespace paperlab::kernels::PAPERLAB_ISA
