#pragma once
// The gradients of a run of tokens' streams.
#include "kernels/depth_aggregate/cpu_grid.h"

namespace paperlab::kernels::PAPERLAB_ISA {
namespace {

// Sources of a group in a chunk of columns. Ways are those whose gradient is there.
template <class T>
struct GradientGroup {
  const T* x[kMostBackward];
  const T* next[kMostBackward];
  T* grad[kMostBackward];
  const T* next_grad[kMostBackward];
  bool is_added[kMostBackward];
  const T* of_sum[kMostWays];
  float weight[kMostWays][kMostBackward];
  float* products[kMostWays][kMostBackward];  // a vector each
  bool adds_products;
  std::int64_t columns;
};

template <class T, int kWays, int kSources>
void gradients_of_group(const GradientGroup<T>& of) {
  VecF weight[kWays][kSources];
  VecF products[kWays][kSources];
  repeat<kWays>([&](int c) {
    repeat<kSources>([&](int g) {
      weight[c][g] = set1(of.weight[c][g]);
      products[c][g] = zero();
    });
  });
  for_each_vector(of.columns, [&](std::int64_t d, std::int64_t count) {
    VecF x[kSources];
    VecF grad[kSources];
    repeat<kSources>([&](int g) {
      __builtin_prefetch(of.next[g] + d, 0, 3);
      __builtin_prefetch(of.next_grad[g] + d, 1, 3);
      x[g] = load_row(of.x[g] + d, count);
      grad[g] = of.is_added[g] ? load_row(of.grad[g] + d, count) : zero();
    });
    repeat<kWays>([&](int c) {
      const VecF of_sum = load_row(of.of_sum[c] + d, count);
      repeat<kSources>([&](int g) {
        grad[g] = fma(weight[c][g], of_sum, grad[g]);
        products[c][g] = fma(x[g], of_sum, products[c][g]);
      });
    });
    repeat<kSources>([&](int g) { store_row(of.grad[g] + d, count, grad[g]); });
  });
  repeat<kWays>([&](int c) {
    repeat<kSources>([&](int g) {
      float* to = of.products[c][g];
      store(to, of.adds_products ? load(to) + products[c][g] : products[c][g]);
    });
  });
}

template <class T, int kWays, int kSources>
void gradients_of_sources(const GradientGroup<T>& of, std::int64_t sources) {
  if constexpr (kSources > 1) {
    if (sources < kSources) {
      gradients_of_sources<T, kWays, kSources - 1>(of, sources);
      return;
    }
  }
  gradients_of_group<T, kWays, kSources>(of);
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
        grid_(problem, kMostBackward),
        num_weights_(problem.num_ways * problem.num_sources),
        vectors_(scratch) {}

  void run(TokenRange tokens, float* sums) {
    const bool is_static = problem_.token_stride == 0;
    clear();
    for (std::int64_t n = tokens.begin; n < tokens.end; ++n) {
      const bool adds_products = is_static && n > tokens.begin;
      bool is_added = false;
      std::int64_t way = 0;
      do {
        const PresentWays ways(problem_, gradients_, way);
        way = ways.next;
        token(ways, n, is_added, adds_products);
        is_added = true;
      } while (way < problem_.num_ways);
      if (!is_static && gradients_.grad_weights != nullptr) {
        store_weights(n);
      }
    }
    if (is_static) {
      sum_vectors(vectors_, num_weights_, vectors_ + padded(num_weights_) * 16);
      __builtin_memcpy(sums, vectors_ + padded(num_weights_) * 16,
                       static_cast<std::size_t>(num_weights_) * sizeof(float));
    }
  }

 private:
  void clear() {
    __builtin_memset(vectors_, 0,
                     static_cast<std::size_t>(backward_scratch(num_weights_)) * sizeof(float));
  }

  void token(const PresentWays& ways, std::int64_t n, bool is_added, bool adds_products) {
    switch (ways.count) {
      case 0:
        return is_added ? void() : clear_sources(n);
      case 1:
        return token<1>(ways, n, is_added, adds_products);
      case 2:
        return token<2>(ways, n, is_added, adds_products);
      case 3:
        return token<3>(ways, n, is_added, adds_products);
      default:
        return token<4>(ways, n, is_added, adds_products);
    }
  }

  template <int kWays>
  void token(const PresentWays& ways, std::int64_t n, bool is_added, bool adds_products) {
    GradientGroup<T> of{};
    Place ahead = grid_.ahead({n, 0, 0});
    for (Place at = {n, 0, 0}; at.token == n; at = grid_.after(at), ahead = grid_.after(ahead)) {
      const std::int64_t source = grid_.first_source(at.group);
      const std::int64_t count = grid_.first_source(at.group + 1) - source;
      of.columns = grid_.columns(at);
      of.adds_products = adds_products || at.column > 0;
      const Place fetched = ahead.token < problem_.num_tokens ? ahead : at;
      for (std::int64_t g = 0; g < count; ++g) {
        set_source(at, fetched, source + g, g, is_added, of);
        for (int c = 0; c < kWays; ++c) {
          of.weight[c][g] = weight_of(problem_, n, ways.way[c], source + g);
          of.products[c][g] =
              vectors_ + (ways.way[c] * problem_.num_sources + source + g) * kFloatLanes;
        }
      }
      for (int c = 0; c < kWays; ++c) {
        of.of_sum[c] = static_cast<const T*>(gradients_.grad_out[ways.way[c]]) + grid_.element(at);
      }
      gradients_of_sources<T, kWays, kMostBackward>(of, count);
    }
  }

  // Without any gradient of a stream.
  void clear_sources(std::int64_t n) {
    for (std::int64_t j = gradients_.num_added; j < problem_.num_sources; ++j) {
      if (grad_of(j) != nullptr) {
        __builtin_memset(grad_of(j) + n * problem_.width, 0,
                         static_cast<std::size_t>(problem_.width) * sizeof(T));
      }
    }
  }

  T* grad_of(std::int64_t source) const {
    return gradients_.grad_sources == nullptr ? nullptr
                                              : static_cast<T*>(gradients_.grad_sources[source]);
  }

  void set_source(Place at, Place fetched, std::int64_t source, std::int64_t g, bool is_added,
                  GradientGroup<T>& of) {
    const std::int64_t last = grid_.first_source(fetched.group + 1) - 1;
    const std::int64_t then = least(grid_.first_source(fetched.group) + g, last);
    of.x[g] = source_at<T>(problem_, source, grid_.element(at));
    of.next[g] = source_at<T>(problem_, then, grid_.element(fetched));
    T* grad = grad_of(source);
    of.grad[g] = grad == nullptr ? unwanted_ : grad + grid_.element(at);
    of.is_added[g] = grad != nullptr && (is_added || source < gradients_.num_added);
    const T* next = grad_of(then);
    of.next_grad[g] = next == nullptr ? unwanted_ : next + grid_.element(fetched);
  }

  void store_weights(std::int64_t n) {
    float* sums = vectors_ + padded(num_weights_) * 16;
    sum_vectors(vectors_, num_weights_, sums);
    auto* to = static_cast<float*>(gradients_.grad_weights) + n * problem_.token_stride;
    for (std::int64_t c = 0; c < problem_.num_ways; ++c) {
      __builtin_memcpy(to + c * problem_.way_stride, sums + c * problem_.num_sources,
                       static_cast<std::size_t>(problem_.num_sources) * sizeof(float));
    }
  }

  const DepthAggregate& problem_;
  const DepthAggregateGradients& gradients_;
  Grid grid_;
  std::int64_t num_weights_;
  float* vectors_;  // [C J] vectors; those of absent ways stay 0
  T unwanted_[kChunkColumns] = {};
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
