// Compiled once for each instruction set. The columns of a token lie in the lanes. Memory is the
// limit, so sources come a few at a time, as runs that a processor reads at its full rate, and the
// next ones are fetched meanwhile; sums wait in the first-level cache.
#include "kernels/depth_aggregate/cpu.h"

#include "kernels/common/vec_row.h"

namespace paperlab::kernels::PAPERLAB_ISA {
namespace {

// By the number of registers: weights of all ways and sources of a group, and sums.
#if defined(__AVX512F__)
constexpr int kMostSources = 6;
constexpr int kMostBackward = 2;
constexpr int kMostVecs = 4;
#else
constexpr int kMostSources = 2;
constexpr int kMostBackward = 1;
constexpr int kMostVecs = 2;
#endif

std::int64_t least(std::int64_t a, std::int64_t b) { return a < b ? a : b; }

float number(const float* p) { return *p; }
float number(const std::uint16_t* p) {
  const std::uint32_t bits = std::uint32_t{*p} << 16U;
  float value = 0.0F;
  __builtin_memcpy(&value, &bits, sizeof(value));
  return value;
}

// Past the caches; p is a multiple of the vector's bytes.
inline void stream(float* p, VecF v) {
#if defined(__AVX512F__)
  _mm512_stream_ps(p, v);
#elif defined(__AVX2__)
  _mm256_stream_ps(p, v);
#else
  _mm_stream_ps(p, v);
#endif
}
inline void stream(std::uint16_t* p, VecF v) {
  std::uint16_t half[kFloatLanes];
  store_bfloat16(half, v);
#if defined(__AVX512F__)
  __m256i bits;
  __builtin_memcpy(&bits, half, sizeof(bits));
  _mm256_stream_si256(reinterpret_cast<__m256i*>(p), bits);
#elif defined(__AVX2__)
  __m128i bits;
  __builtin_memcpy(&bits, half, sizeof(bits));
  _mm_stream_si128(reinterpret_cast<__m128i*>(p), bits);
#else
  long long bits = 0;
  __builtin_memcpy(&bits, half, sizeof(bits));
  _mm_stream_si64(reinterpret_cast<long long*>(p), bits);
#endif
}

// Calls f(0, ..., kCount - 1), unrolled.
template <int kCount, class F>
inline void repeat(F f) {
#pragma GCC unroll 16
  for (int i = 0; i < kCount; ++i) {
    f(i);
  }
}

// Where a pass over tokens is: a chunk of a token's columns, a group of sources of it.
struct Place {
  std::int64_t token;
  std::int64_t column;
  std::int64_t group;
};

struct Grid {
  std::int64_t width;
  std::int64_t num_sources;
  std::int64_t num_groups;

  Grid(const DepthAggregate& problem, std::int64_t most)
      : width(problem.width),
        num_sources(problem.num_sources),
        num_groups(num_blocks(problem.num_sources, most)) {}

  Place after(Place at) const {
    if (++at.group == num_groups) {
      at.group = 0;
      at.column += kChunkColumns;
      if (at.column >= width) {
        at.column = 0;
        ++at.token;
      }
    }
    return at;
  }
  // What is fetched while `at` is worked on: far enough for memory to answer, near enough for the
  // first-level cache to keep it.
  Place ahead(Place at) const { return after(after(at)); }
  std::int64_t first_source(std::int64_t group) const { return group * num_sources / num_groups; }
  std::int64_t element(Place at) const { return at.token * width + at.column; }
  std::int64_t columns(Place at) const { return least(width - at.column, kChunkColumns); }
};

float weight_of(const DepthAggregate& problem, std::int64_t token, std::int64_t way,
                std::int64_t source) {
  const std::int64_t at = token * problem.token_stride + way * problem.way_stride + source;
  return problem.weights_dtype == DType::kFloat32
             ? static_cast<const float*>(problem.weights)[at]
             : number(static_cast<const std::uint16_t*>(problem.weights) + at);
}

template <class T>
const T* source_at(const DepthAggregate& problem, std::int64_t source, std::int64_t element) {
  return static_cast<const T*>(problem.sources[source]) + element;
}

// ---- the sum ----

// Sources of a group, in a chunk of a token's columns, and what is fetched meanwhile.
template <class T>
struct SumGroup {
  const T* x[kMostSources];
  const T* next[kMostSources];
  float weight[kMostWays][kMostSources];
  float* sums;  // [ways][kChunkColumns]
  T* out[kMostWays];
  std::int64_t columns;
  bool is_first;
  bool is_last;
  bool is_past_caches;
};

template <class T, int kWays, int kSources>
void add_group(const SumGroup<T>& of) {
  VecF weight[kWays][kSources];
  repeat<kWays>(
      [&](int c) { repeat<kSources>([&](int g) { weight[c][g] = set1(of.weight[c][g]); }); });
  const bool is_first = of.is_first;
  const bool is_last = of.is_last;
  const bool is_past_caches = of.is_past_caches;
  for_each_vector(of.columns, [&](std::int64_t d, std::int64_t count) {
    VecF x[kSources];
    repeat<kSources>([&](int g) {
      __builtin_prefetch(of.next[g] + d, 0, 3);
      x[g] = load_row(of.x[g] + d, count);
    });
    repeat<kWays>([&](int c) {
      float* at = of.sums + c * kChunkColumns + d;
      VecF sum = is_first ? zero() : load(at);
      repeat<kSources>([&](int g) { sum = fma(weight[c][g], x[g], sum); });
      if (!is_last) {
        store(at, sum);
      } else if (is_past_caches) {
        stream(of.out[c] + d, sum);
      } else {
        store_row(of.out[c] + d, count, sum);
      }
    });
  });
}

// kSources or fewer of them.
template <class T, int kWays, int kSources>
void add_sources(const SumGroup<T>& of, std::int64_t sources) {
  if constexpr (kSources > 1) {
    if (sources < kSources) {
      add_sources<T, kWays, kSources - 1>(of, sources);
      return;
    }
  }
  add_group<T, kWays, kSources>(of);
}

// Ways first_way.. of the tokens.
template <class T, int kWays>
void sum_tokens(const DepthAggregate& problem, void* const* out, std::int64_t first_way,
                TokenRange tokens, bool is_past_caches) {
  const Grid grid(problem, kMostSources);
  alignas(64) float sums[kWays * kChunkColumns];
  SumGroup<T> of{};
  of.sums = sums;
  of.is_past_caches = is_past_caches;
  Place ahead = grid.ahead({tokens.begin, 0, 0});
  for (Place at = {tokens.begin, 0, 0}; at.token < tokens.end;
       at = grid.after(at), ahead = grid.after(ahead)) {
    const Place fetched = ahead.token < problem.num_tokens ? ahead : at;
    const std::int64_t source = grid.first_source(at.group);
    const std::int64_t fetched_source = grid.first_source(fetched.group);
    const std::int64_t count = grid.first_source(at.group + 1) - source;
    const std::int64_t last = grid.first_source(fetched.group + 1) - 1;
    for (std::int64_t g = 0; g < count; ++g) {
      of.x[g] = source_at<T>(problem, source + g, grid.element(at));
      of.next[g] = source_at<T>(problem, least(fetched_source + g, last), grid.element(fetched));
      for (int c = 0; c < kWays; ++c) {
        of.weight[c][g] = weight_of(problem, at.token, first_way + c, source + g);
      }
    }
    for (int c = 0; c < kWays; ++c) {
      of.out[c] = static_cast<T*>(out[first_way + c]) + grid.element(at);
    }
    of.columns = grid.columns(at);
    of.is_first = at.group == 0;
    of.is_last = at.group + 1 == grid.num_groups;
    add_sources<T, kWays, kMostSources>(of, count);
  }
}

template <class T>
void sum_all_ways(const DepthAggregate& problem, void* const* out, TokenRange tokens,
                  bool is_past_caches) {
  for (std::int64_t way = 0; way < problem.num_ways; way += kMostWays) {
    switch (problem.num_ways - way) {
      case 1:
        sum_tokens<T, 1>(problem, out, way, tokens, is_past_caches);
        break;
      case 2:
        sum_tokens<T, 2>(problem, out, way, tokens, is_past_caches);
        break;
      case 3:
        sum_tokens<T, 3>(problem, out, way, tokens, is_past_caches);
        break;
      default:
        sum_tokens<T, 4>(problem, out, way, tokens, is_past_caches);
    }
  }
}

void forward(const DepthAggregate& problem, void* const* out, TokenRange tokens,
             bool is_past_caches) {
  const std::int64_t size = problem.dtype == DType::kFloat32 ? 4 : 2;
  bool is_aligned = problem.width * size % 64 == 0;
  for (std::int64_t c = 0; c < problem.num_ways; ++c) {
    is_aligned = is_aligned && reinterpret_cast<std::uintptr_t>(out[c]) % 64 == 0;
  }
  if (problem.dtype == DType::kFloat32) {
    sum_all_ways<float>(problem, out, tokens, is_past_caches && is_aligned);
  } else {
    sum_all_ways<std::uint16_t>(problem, out, tokens, is_past_caches && is_aligned);
  }
  if (is_past_caches && is_aligned) {
    _mm_sfence();  // before the task counts as done
  }
}

// ---- its gradients ----

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
void sum_vectors(const float* vectors, std::int64_t count, float* sums) {
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

void backward(const DepthAggregate& problem, const DepthAggregateGradients& gradients,
              TokenRange tokens, float* scratch, float* sums) {
  if (problem.dtype == DType::kFloat32) {
    TokenGradients<float>(problem, gradients, scratch).run(tokens, sums);
  } else {
    TokenGradients<std::uint16_t>(problem, gradients, scratch).run(tokens, sums);
  }
}

// ---- the generator ----

// Terms that are added up before they go to memory: 64 columns of them, 32 KiB, stay in the
// first-level cache, and chains of additions stay short.
constexpr std::int64_t kTerms = 128;

// c [rows, columns] = a [rows, k] b [k, padded columns] + bias.
template <class T>
struct RowProduct {
  const T* a;
  std::int64_t a_stride;
  std::int64_t k;
  const float* b;
  std::int64_t columns;
  const float* bias;  // padded; absent: zeros
  float* c;
  std::int64_t c_stride;
};

template <class T, int kRows, int kVecs>
void product_tile(const RowProduct<T>& of, std::int64_t row, std::int64_t column,
                  TokenRange terms) {
  VecF sums[kRows][kVecs];
  const std::int64_t b_stride = padded(of.columns);
  const auto count_of = [&](int v) {
    return least(of.columns - column - v * kFloatLanes, kFloatLanes);
  };
  repeat<kVecs>([&](int v) {
    const VecF bias = of.bias == nullptr ? zero() : load(of.bias + column + v * kFloatLanes);
    repeat<kRows>([&](int r) {
      const float* c = of.c + (row + r) * of.c_stride + column + v * kFloatLanes;
      sums[r][v] = terms.begin == 0 || count_of(v) <= 0 ? bias : load_row(c, count_of(v));
    });
  });
  const T* a = of.a + row * of.a_stride;
  for (std::int64_t k = terms.begin; k < terms.end; ++k) {
    VecF b[kVecs];
    repeat<kVecs>([&](int v) { b[v] = load(of.b + k * b_stride + column + v * kFloatLanes); });
    repeat<kRows>([&](int r) {
      const VecF x = set1(number(a + r * of.a_stride + k));
      repeat<kVecs>([&](int v) { sums[r][v] = fma(x, b[v], sums[r][v]); });
    });
  }
  repeat<kVecs>([&](int v) {
    repeat<kRows>([&](int r) {
      if (count_of(v) > 0) {
        store_row(of.c + (row + r) * of.c_stride + column + v * kFloatLanes, count_of(v),
                  sums[r][v]);
      }
    });
  });
}

template <class T, int kVecs>
void product_columns(const RowProduct<T>& of, std::int64_t rows, std::int64_t column) {
  // Sums fill the registers.
  constexpr int kRows = kVecs == kMostVecs ? 6 : kVecs == 3 ? 8 : 12;
  for (std::int64_t k = 0; k == 0 || k < of.k; k += kTerms) {
    const TokenRange terms = {k, least(k + kTerms, of.k)};
    std::int64_t row = 0;
    for (; row + kRows <= rows; row += kRows) {
      product_tile<T, kRows, kVecs>(of, row, column, terms);
    }
    for (; row + 2 <= rows; row += 2) {
      product_tile<T, 2, kVecs>(of, row, column, terms);
    }
    if (row < rows) {
      product_tile<T, 1, kVecs>(of, row, column, terms);
    }
  }
}

template <class T>
void product(const RowProduct<T>& of, std::int64_t rows) {
  const std::int64_t vecs = num_blocks(of.columns, kFloatLanes);
  const std::int64_t tiles = num_blocks(vecs, kMostVecs);
  for (std::int64_t tile = 0; tile < tiles; ++tile) {
    const std::int64_t first = tile * vecs / tiles;
    const std::int64_t column = first * kFloatLanes;
    switch ((tile + 1) * vecs / tiles - first) {
      case 1:
        product_columns<T, 1>(of, rows, column);
        break;
      case 2:
        product_columns<T, 2>(of, rows, column);
        break;
      case 3:
        product_columns < T, kMostVecs<3 ? 1 : 3>(of, rows, column);
        break;
      default:
        product_columns < T, kMostVecs<4 ? 1 : 4>(of, rows, column);
    }
  }
}

struct Gelu {
  VecF value;
  VecF slope;
};

// z Phi(z) and Phi(z) + z phi(z), with Phi(-|z|) = exp(-z^2 / 2) t p(t) / 2, t = 1 / (1 + 0.35
// |z| / sqrt 2); t p(t) is exp(x^2) erfc(x) to 4e-7 (least squares on relative errors, degree 9).
inline Gelu gelu_exact(VecF z) {
  const VecF size = z < zero() ? -z : z;
  const VecF t = 1.0F / fma(size, set1(0.35F * 0.70710678F), set1(1.0F));
  VecF p = set1(0.03841949999332428F);
  p = fma(p, t, set1(-0.15893132984638214F));
  p = fma(p, t, set1(0.18120776116847992F));
  p = fma(p, t, set1(-0.026969682425260544F));
  p = fma(p, t, set1(0.08602650463581085F));
  p = fma(p, t, set1(0.14680969715118408F));
  p = fma(p, t, set1(0.15082722902297974F));
  p = fma(p, t, set1(0.18800245225429535F));
  p = fma(p, t, set1(0.19712311029434204F));
  p = fma(p, t, set1(0.19748474657535553F));
  const VecF decay = exp(z * z * -0.5F);
  const VecF tail = decay * t * p * 0.5F;
  const VecF normal = z < zero() ? tail : 1.0F - tail;
  return {z * normal, fma(z * decay, set1(0.39894228F), normal)};
}

// z s(2 u), u = sqrt(2 / pi) (z + 0.044715 z^3), s the logistic function.
inline Gelu gelu_tanh(VecF z) {
  const VecF u = z * fma(z * z, set1(2.0F * 0.79788456F * 0.044715F), set1(2.0F * 0.79788456F));
  const VecF e = exp(u < zero() ? u : -u);
  const VecF s = (u < zero() ? e : set1(1.0F)) / (e + 1.0F);
  const VecF rest = (u < zero() ? set1(1.0F) : e) / (e + 1.0F);  // 1 - s would cancel
  const VecF slope = fma(z * z, set1(6.0F * 0.79788456F * 0.044715F), set1(2.0F * 0.79788456F));
  return {z * s, fma(z * s, rest * slope, s)};
}

inline Gelu gelu(VecF z, GeluForm form) {
  return form == GeluForm::kExact ? gelu_exact(z) : gelu_tanh(z);
}

template <class T>
float inverse_rms(const T* x, std::int64_t width, double eps) {
  VecF squares[2] = {};
  int at = 0;
  for_each_vector(width, [&](std::int64_t d, std::int64_t count) {
    const VecF v = load_row(x + d, count);
    squares[at] = fma(v, v, squares[at]);
    at ^= 1;
  });
  const float mean = sum_of_lanes(squares[0] + squares[1]) / static_cast<float>(width);
  return 1.0F / __builtin_sqrtf(mean + static_cast<float>(eps));
}

template <class T>
void generate_tokens(const ConnectionWeights& problem, const GeneratorPanels& panels,
                     const ConnectionWeightsResult& result, TokenRange tokens, float* h) {
  const std::int64_t width = problem.width;
  const std::int64_t hidden = problem.hidden_size;
  const std::int64_t stride = padded(hidden);
  const auto* x = static_cast<const T*>(problem.x) + tokens.begin * width;
  if (hidden > 0) {
    product<T>({x, width, width, panels.w1, hidden, nullptr, h, stride}, tokens.size());
  }
  for (std::int64_t n = 0; n < tokens.size() && hidden > 0; ++n) {
    const float r = inverse_rms(x + n * width, width, problem.eps);
    if (result.inverse_rms != nullptr) {
      static_cast<float*>(result.inverse_rms)[tokens.begin + n] = r;
    }
    float* z =
        result.z == nullptr ? nullptr : static_cast<float*>(result.z) + (tokens.begin + n) * hidden;
    for_each_vector(hidden, [&](std::int64_t k, std::int64_t count) {
      const VecF value = load_row(h + n * stride + k, count) * r;
      if (z != nullptr) {
        store_row(z + k, count, value);
      }
      store_row(h + n * stride + k, count, gelu(value, problem.gelu).value);
    });
  }
  product<float>({h, stride, hidden, panels.w2, problem.num_weights, panels.bias,
                  static_cast<float*>(result.weights) + tokens.begin * problem.num_weights,
                  problem.num_weights},
                 tokens.size());
}

void generate(const ConnectionWeights& problem, const GeneratorPanels& panels,
              const ConnectionWeightsResult& result, TokenRange tokens, float* scratch) {
  if (problem.dtype == DType::kFloat32) {
    generate_tokens<float>(problem, panels, result, tokens, scratch);
  } else {
    generate_tokens<std::uint16_t>(problem, panels, result, tokens, scratch);
  }
}

// h, and the gradient of z times r from that of h. With Z the token's and dZ its gradient,
// mean(dN N) = dZ Z / D, because N = x r and Z = N w1; of_x [tokens] is set to that times r^2.
void grad_z(const ConnectionWeights& problem, const ConnectionWeightsGradients& gradients,
            const GeneratorRows& rows, TokenRange tokens, float* of_x) {
  const std::int64_t hidden = problem.hidden_size;
  for (std::int64_t n = tokens.begin; n < tokens.end; ++n) {
    const auto* z = static_cast<const float*>(gradients.z) + n * hidden;
    const float r = static_cast<const float*>(gradients.inverse_rms)[n];
    float* h = rows.h + (n - rows.begin) * hidden;
    float* grad = rows.grad_z + (n - rows.begin) * hidden;
    VecF sum = zero();
    for_each_vector(hidden, [&](std::int64_t k, std::int64_t count) {
      const VecF value = load_row(z + k, count);
      const auto [activation, slope] = gelu(value, problem.gelu);
      const VecF of_z = load_row(grad + k, count) * slope * r;
      store_row(h + k, count, activation);
      store_row(grad + k, count, of_z);
      sum = fma(of_z, value, sum);
    });
    of_x[n - tokens.begin] = sum_of_lanes(sum) * r / static_cast<float>(problem.width);
  }
}

// product [tokens, padded D]: grad_z w1^T.
template <class T>
void grad_x(const ConnectionWeights& problem, const ConnectionWeightsGradients& gradients,
            const float* product, const float* of_x, TokenRange tokens) {
  const std::int64_t width = problem.width;
  for (std::int64_t n = tokens.begin; n < tokens.end; ++n) {
    const auto* x = static_cast<const T*>(problem.x) + n * width;
    const float* of_z = product + (n - tokens.begin) * padded(width);
    auto* to = static_cast<T*>(gradients.grad_x) + n * width;
    const VecF minus_of_x = set1(-of_x[n - tokens.begin]);
    const bool is_added = gradients.adds_to_grad_x;
    for_each_vector(width, [&](std::int64_t d, std::int64_t count) {
      const VecF grad = fma(minus_of_x, load_row(x + d, count), load_row(of_z + d, count));
      store_row(to + d, count, is_added ? load_row(to + d, count) + grad : grad);
    });
  }
}

void generate_backward(const ConnectionWeights& problem,
                       const ConnectionWeightsGradients& gradients, const GradientPanels& panels,
                       const GeneratorRows& rows, TokenRange tokens, float* scratch) {
  const std::int64_t count = problem.num_weights;
  const std::int64_t hidden = problem.hidden_size;
  const std::int64_t stride = padded(problem.width);
  float* of_x = scratch;
  float* of_z = scratch + padded(tokens.size());
  float* grad = rows.grad_z + (tokens.begin - rows.begin) * hidden;
  const auto* grad_weights =
      static_cast<const float*>(gradients.grad_weights) + tokens.begin * count;
  product<float>({grad_weights, count, count, panels.w2, hidden, nullptr, grad, hidden},
                 tokens.size());
  grad_z(problem, gradients, rows, tokens, of_x);
  if (gradients.grad_x == nullptr) {
    return;
  }
  product<float>({grad, hidden, hidden, panels.w1, problem.width, nullptr, of_z, stride},
                 tokens.size());
  if (problem.dtype == DType::kFloat32) {
    grad_x<float>(problem, gradients, of_z, of_x, tokens);
  } else {
    grad_x<std::uint16_t>(problem, gradients, of_z, of_x, tokens);
  }
}

// ---- rows ----

template <class T>
void pack_rows(const T* from, std::int64_t columns, TokenRange rows, float* to) {
  const std::int64_t stride = padded(columns);
  for (std::int64_t row = rows.begin; row < rows.end; ++row) {
    for_each_vector(columns, [&](std::int64_t i, std::int64_t count) {
      store(to + row * stride + i, load_row(from + row * columns + i, count));
    });
    for (std::int64_t i = num_blocks(columns, kFloatLanes) * kFloatLanes; i < stride; ++i) {
      to[row * stride + i] = 0.0F;
    }
  }
}

void pack(const void* from, DType dtype, std::int64_t columns, TokenRange rows, float* to) {
  if (dtype == DType::kFloat32) {
    pack_rows(static_cast<const float*>(from), columns, rows, to);
  } else {
    pack_rows(static_cast<const std::uint16_t*>(from), columns, rows, to);
  }
}

// Lines of 16 columns are read, and written in as many places.
template <class T>
void pack_columns(const T* from, std::int64_t rows, std::int64_t columns, TokenRange range,
                  float* to) {
  const std::int64_t stride = padded(rows);
  for (std::int64_t first = range.begin; first < range.end; first += 16) {
    const std::int64_t last = least(first + 16, range.end);
    for (std::int64_t row = 0; row < stride; ++row) {
      for (std::int64_t column = first; column < last; ++column) {
        to[column * stride + row] = row < rows ? number(from + row * columns + column) : 0.0F;
      }
    }
  }
}

void pack_transposed(const void* from, DType dtype, std::int64_t rows, std::int64_t columns,
                     TokenRange range, float* to) {
  if (dtype == DType::kFloat32) {
    pack_columns(static_cast<const float*>(from), rows, columns, range, to);
  } else {
    pack_columns(static_cast<const std::uint16_t*>(from), rows, columns, range, to);
  }
}

template <class T>
void add_elements(const T* a, const T* b, std::int64_t count, T* to) {
  for_each_vector(count, [&](std::int64_t i, std::int64_t lanes) {
    store_row(to + i, lanes, load_row(a + i, lanes) + load_row(b + i, lanes));
  });
}

template <class T>
void add_elements(const void* a, const void* b, TokenRange elements, void* to) {
  add_elements(static_cast<const T*>(a) + elements.begin, static_cast<const T*>(b) + elements.begin,
               elements.size(), static_cast<T*>(to) + elements.begin);
}

void add(DType dtype, const void* a, const void* b, TokenRange elements, void* to) {
  if (dtype == DType::kFloat32) {
    add_elements<float>(a, b, elements, to);
  } else {
    add_elements<std::uint16_t>(a, b, elements, to);
  }
}

void add_rows(const float* from, std::int64_t rows, std::int64_t columns, float* sums) {
  for_each_vector(columns, [&](std::int64_t i, std::int64_t count) {
    VecF sum = zero();
    for (std::int64_t row = 0; row < rows; ++row) {
      sum += load_row(from + row * columns + i, count);
    }
    store_row(sums + i, count, load_row(sums + i, count) + sum);
  });
}

void narrow(const float* from, std::int64_t count, DType dtype, void* to) {
  for_each_vector(count, [&](std::int64_t i, std::int64_t lanes) {
    if (dtype == DType::kFloat32) {
      store_row(static_cast<float*>(to) + i, lanes, load_row(from + i, lanes));
    } else {
      store_row(static_cast<std::uint16_t*>(to) + i, lanes, load_row(from + i, lanes));
    }
  });
}

}  // namespace

DepthAggregateCpu depth_aggregate_cpu() {
  return {pack,     pack_transposed,   add,      generate, forward,
          backward, generate_backward, add_rows, narrow};
}

}  // namespace paperlab::kernels::PAPERLAB_ISA
