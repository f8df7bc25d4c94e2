#pragma once
// The register-tiled products of a tile. The rows of the query side lie in the lanes, so that every
// product is (numbers that are broadcast) x (vectors): nothing is transposed for a key block,
// nothing is summed across lanes, and a lane's sum does not depend on the vector's width. The index
// that is summed over counts words (cpu_words.h). Include only from cpu.cpp.

#include "kernels/attention/cpu_words.h"
#include "kernels/attention/tile.h"

namespace paperlab::kernels::PAPERLAB_ISA {
namespace {

// A register tile is 6 numbers x kGroupVectors vectors: with 32 registers 24 sums, 4 vectors and a
// number; with 16 registers 12, 2 and 1.
#if defined(__AVX512F__)
constexpr std::int64_t kGroupVectors = 4;
#else
constexpr std::int64_t kGroupVectors = 2;
#endif
constexpr std::int64_t kGroupLanes = kGroupVectors * kFloatLanes;
constexpr std::int64_t kTileVectors = kTileRows / kFloatLanes;

// What one vector of a tile's rows sees of a key block: keys 0..limit-1 at most. Limits never
// decrease from vector to vector.
struct Limits {
  std::int64_t of[kTileVectors];
};

// The same in words along the keys.
template <class Word>
inline Limits in_words(const Limits& limits) {
  Limits words;
  for (std::int64_t v = 0; v < kTileVectors; ++v) {
    words.of[v] = num_words<Word>(limits.of[v]);
  }
  return words;
}

template <int M, int N>
struct Sums {
  VecF at[M][N];
};

// sums[m][n] += sum over k of a[m a_m + k a_k] * (vector n of row k of b), for n >= First.
template <class Word, int First, int M, int N>
inline __attribute__((always_inline)) void multiply_add(Sums<M, N>& sums, const float* a,
                                                        std::int64_t a_m, std::int64_t a_k,
                                                        const float* b, std::int64_t b_k,
                                                        std::int64_t num_k) {
  for (std::int64_t k = 0; k < num_k; ++k) {
    VecF vectors[N];
#pragma GCC unroll 4
    for (std::int64_t n = First; n < N; ++n) {
      vectors[n] = load(b + k * b_k + n * kFloatLanes);
    }
#pragma GCC unroll 6
    for (std::int64_t m = 0; m < M; ++m) {
      const VecF number = set1(a[m * a_m + k * a_k]);
#pragma GCC unroll 4
      for (std::int64_t n = First; n < N; ++n) {
        sums.at[m][n] = Word::multiply_add(number, vectors[n], sums.at[m][n]);
      }
    }
  }
}

// Calls tile(m, count as a type) for 0..num_m-1 in runs of 6, then 4, 2, 1.
template <int Count>
struct Run {
  static constexpr std::int64_t kCount = Count;
};
template <class F>
inline __attribute__((always_inline)) void for_each_run(std::int64_t num_m, F tile) {
  std::int64_t m = 0;
  for (; m + 6 <= num_m; m += 6) {
    tile(m, Run<6>{});
  }
  if (m + 4 <= num_m) {
    tile(m, Run<4>{});
    m += 4;
  }
  if (m + 2 <= num_m) {
    tile(m, Run<2>{});
    m += 2;
  }
  if (m < num_m) {
    tile(m, Run<1>{});
  }
}

// Calls body(count as a type) for a count of 1..kGroupVectors vectors.
template <class F>
inline __attribute__((always_inline)) void with_vectors(std::int64_t count, F body) {
  if (count == 1) {
    body(Run<1>{});
  } else if (count == 2) {
    body(Run<2>{});
  } else if constexpr (kGroupVectors == 4) {
    if (count == 3) {
      body(Run<3>{});
    } else if (count == 4) {
      body(Run<4>{});
    }
  }
}

// Sums along the head dimension are of at most so many words: a chain of additions loses accuracy
// with its length.
constexpr std::int64_t kLongestChain = 64;

// One register tile of `dot_products`.
template <class Word, int M, int N>
void dot_tile(const float* a, std::int64_t a_m, const float* b, std::int64_t num_k, float factor,
              float* c, float* largest) {
  Sums<M, N> sums{};
  multiply_add<Word, 0>(sums, a, a_m, 1, b, kTileRows, smaller(num_k, kLongestChain));
  for (std::int64_t k = kLongestChain; k < num_k; k += kLongestChain) {
    Sums<M, N> more{};
    multiply_add<Word, 0>(more, a + k, a_m, 1, b + k * kTileRows, kTileRows,
                          smaller(num_k - k, kLongestChain));
#pragma GCC unroll 6
    for (int m = 0; m < M; ++m) {
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) {
        sums.at[m][n] += more.at[m][n];
      }
    }
  }
  const VecF scale = set1(factor);
#pragma GCC unroll 4
  for (std::int64_t n = 0; n < N; ++n) {
    VecF most = load(largest + n * kFloatLanes);
#pragma GCC unroll 6
    for (std::int64_t m = 0; m < M; ++m) {
      const VecF x = sums.at[m][n] * scale;
      most = max(x, most);
      store(c + m * kTileRows + n * kFloatLanes, x);
    }
    store(largest + n * kFloatLanes, most);
  }
}

// c[m][row] = factor * sum over k of a[m a_m + k] b[k][row] for the rows that see key m: all
// vectors whose limit is above m. Raises largest[row] to the largest of these. b and c have
// kTileRows columns.
template <class Word>
inline void dot_products(const float* a, std::int64_t a_m, std::int64_t num_m, const float* b,
                         std::int64_t num_k, float factor, const Limits& limits,
                         std::int64_t num_vectors, float* c, float* largest) {
  for_each_run(num_m, [&](std::int64_t m, auto run) {
    std::int64_t first = 0;
    while (first < num_vectors && limits.of[first] <= m) {
      ++first;
    }
    for (std::int64_t v = first; v < num_vectors; v += kGroupVectors) {
      const std::int64_t lane = v * kFloatLanes;
      with_vectors(
          num_vectors - v < kGroupVectors ? num_vectors - v : kGroupVectors, [&](auto vectors) {
            dot_tile<Word, run.kCount, vectors.kCount>(a + m * a_m, a_m, b + lane, num_k, factor,
                                                       c + m * kTileRows + lane, largest + lane);
          });
    }
  });
}

// Products over keys 0..limits[n]-1 for each vector n: first those that all vectors see, then those
// of vectors 1.., and so on.
template <class Word, int First, int M, int N>
inline __attribute__((always_inline)) void add_stairs(Sums<M, N>& sums, const float* a,
                                                      std::int64_t a_k, const float* b,
                                                      std::int64_t done,
                                                      const std::int64_t* limits) {
  if constexpr (First < N) {
    multiply_add<Word, First>(sums, a + done * a_k, 1, a_k, b + done * kTileRows, kTileRows,
                              limits[First] - done);
    add_stairs<Word, First + 1>(sums, a, a_k, b, limits[First], limits);
  }
}

template <class Word, int M, int N>
void weighted_tile(const float* a, std::int64_t a_k, const float* b, const std::int64_t* limits,
                   const float* keep, float* c) {
  Sums<M, N> sums{};
  add_stairs<Word, 0>(sums, a, a_k, b, 0, limits);
#pragma GCC unroll 4
  for (std::int64_t n = 0; n < N; ++n) {
    const VecF factor = load(keep + n * kFloatLanes);
#pragma GCC unroll 6
    for (std::int64_t m = 0; m < M; ++m) {
      float* at = c + m * kTileRows + n * kFloatLanes;
      store(at, fma(load(at), factor, sums.at[m][n]));
    }
  }
}

// c[m][row] = keep[row] c[m][row] + sum over keys k that the row's vector sees of
// a[m + k a_k] b[k][row].
template <class Word>
inline void weighted_sums(const float* a, std::int64_t a_k, std::int64_t num_m, const float* b,
                          const Limits& limits, std::int64_t num_vectors, const float* keep,
                          float* c) {
  for (std::int64_t v = 0; v < num_vectors; v += kGroupVectors) {
    const std::int64_t lane = v * kFloatLanes;
    with_vectors(
        num_vectors - v < kGroupVectors ? num_vectors - v : kGroupVectors, [&](auto vectors) {
          for_each_run(num_m, [&](std::int64_t m, auto run) {
            weighted_tile<Word, run.kCount, vectors.kCount>(a + m, a_k, b + lane, limits.of + v,
                                                            keep + lane, c + m * kTileRows + lane);
          });
        });
  }
}

template <class Word, int M, int N>
void outer_tile(const float* a, const float* b, std::int64_t width, std::int64_t num_k, float* c) {
  Sums<M, N> sums{};
  multiply_add<Word, 0>(sums, a, num_words<Word>(kTileRows), 1, b, width, num_k);
#pragma GCC unroll 6
  for (std::int64_t m = 0; m < M; ++m) {
#pragma GCC unroll 4
    for (std::int64_t n = 0; n < N; ++n) {
      float* at = c + m * width + n * kFloatLanes;
      store(at, load(at) + sums.at[m][n]);
    }
  }
}

// c[m][d] += sum over rows r of a[m][r] b[r][d], for the rows that see key m: a is
// [num_m][words of kTileRows], b [words of kTileRows][width], c [num_m][width], `width` a multiple
// of the lanes.
template <class Word>
inline void outer_sums(const float* a, std::int64_t num_m, const float* b, std::int64_t width,
                       const Limits& limits, std::int64_t num_vectors, float* c) {
  const std::int64_t lanes = kFloatLanes;
  const std::int64_t a_stride = num_words<Word>(kTileRows);
  const std::int64_t last = num_words<Word>(num_vectors * lanes);
  for_each_run(num_m, [&](std::int64_t m, auto run) {
    std::int64_t first = 0;
    while (first < num_vectors && limits.of[first] <= m) {
      ++first;
    }
    const std::int64_t row = num_words<Word>(first * lanes);
    for (std::int64_t d = 0; d < width; d += kGroupLanes) {
      const std::int64_t left = (width - d) / lanes;
      with_vectors(left < kGroupVectors ? left : kGroupVectors, [&](auto vectors) {
        outer_tile<Word, run.kCount, vectors.kCount>(a + m * a_stride + row, b + row * width + d,
                                                     width, last - row, c + m * width + d);
      });
    }
  });
}

}  // namespace
}  // namespace paperlab::kernels::PAPERLAB_ISA
