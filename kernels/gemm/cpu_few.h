#pragma once
// Few rows of A: B is read once, where it lies, and the terms lie in the lanes. Include only from
// cpu.cpp.

#include "kernels/gemm/cpu.h"
#include "kernels/gemm/cpu_lanes.h"

namespace paperlab::kernels::PAPERLAB_ISA {
namespace {

// A word of memory holds one float32, or two bfloat16 numbers of which the second is the upper one.
template <class W>
constexpr std::int64_t kWordNumbers = 4 / sizeof(W);

// Rows of B at a time, for up to 4 of A: the sums stay in registers.
#if defined(__AVX512F__)
template <int Rows>
constexpr int kFewColumns = 4;
#else
template <int Rows>
constexpr int kFewColumns = Rows == 4 ? 2 : 4;
#endif

// Of a row of A that are copied at a time.
constexpr std::int64_t kPreparedNumbers = 512;

// B is fetched so many bytes ahead of its use: the processor alone looks too few words ahead.
constexpr std::int64_t kAheadBytes = 8192;

// Sums across lanes in a tree: halves, quarters, then (0 + 2) + (1 + 3).
using Vec4 = float __attribute__((vector_size(16)));
inline Vec4 quarter(Vec4 v) { return v; }
#if defined(__AVX2__)
using Vec8 = float __attribute__((vector_size(32)));
inline Vec4 quarter(Vec8 v) {
  return __builtin_shufflevector(v, v, 0, 1, 2, 3) + __builtin_shufflevector(v, v, 4, 5, 6, 7);
}
#endif
#if defined(__AVX512F__)
inline Vec4 quarter(VecF v) {
  return quarter(__builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7) +
                 __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15));
}
#endif
inline float tree_sum(VecF v) {
  const Vec4 x = quarter(v);
  return (x[0] + x[2]) + (x[1] + x[3]);
}
// Of four vectors at once.
inline Vec4 tree_sums(VecF a, VecF b, VecF c, VecF d) {
  const Vec4 x[4] = {quarter(a), quarter(b), quarter(c), quarter(d)};
  const Vec4 ab = __builtin_shufflevector(x[0], x[1], 0, 4, 1, 5) +
                  __builtin_shufflevector(x[0], x[1], 2, 6, 3, 7);
  const Vec4 cd = __builtin_shufflevector(x[2], x[3], 0, 4, 1, 5) +
                  __builtin_shufflevector(x[2], x[3], 2, 6, 3, 7);
  return __builtin_shufflevector(ab, cd, 0, 1, 4, 5) + __builtin_shufflevector(ab, cd, 2, 3, 6, 7);
}

// The numbers of kFloatLanes words: sums of every row of A with every row of B.
template <class W, int Rows, int Columns>
inline __attribute__((always_inline)) void add_words(VecF (&sums)[Columns][Rows], const float* a,
                                                     std::int64_t a_stride,
                                                     const VecU (&words)[Columns]) {
#pragma GCC unroll 4
  for (int m = 0; m < Rows; ++m) {
    const VecF first = load(a + m * a_stride);
#pragma GCC unroll 4
    for (int n = 0; n < Columns; ++n) {
      if constexpr (kWordNumbers<W> == 1) {
        sums[n][m] = fma(first, (VecF)words[n], sums[n][m]);
      } else {
        sums[n][m] = fma(first, (VecF)(words[n] << 16U), sums[n][m]);
      }
    }
    if constexpr (kWordNumbers<W> == 2) {
      const VecF second = load(a + m * a_stride + kFloatLanes);
#pragma GCC unroll 4
      for (int n = 0; n < Columns; ++n) {
        sums[n][m] = fma(second, (VecF)(words[n] & 0xFFFF0000U), sums[n][m]);
      }
    }
  }
}

inline VecU load_words(const void* p) {
  VecU v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}

// Where rows of B begin and how a result is stored.
template <class W>
struct FewColumns {
  const float* a;
  std::int64_t a_stride;
  const W* b;
  std::int64_t b_stride;
  std::int64_t num_k;
  const W* bias;  // absent: zeros
  W* c;
  std::int64_t c_stride;
};

inline float as_float(float x) { return x; }
inline float as_float(std::uint16_t x) {
  return __builtin_bit_cast(float, std::uint32_t{x} << 16U);
}
inline void store_result(float* c, float x) { *c = x; }
inline void store_result(std::uint16_t* c, float x) { store_row(c, 1, set1(x)); }

template <class W, int Rows, int Columns>
inline __attribute__((always_inline)) void store_sums(const FewColumns<W>& of,
                                                      const VecF (&sums)[Columns][Rows]) {
  float bias[Columns] = {};
  for (int n = 0; of.bias != nullptr && n < Columns; ++n) {
    bias[n] = as_float(of.bias[n]);
  }
#pragma GCC unroll 4
  for (int m = 0; m < Rows; ++m) {
    W* c = of.c + m * of.c_stride;
    if constexpr (Columns == 4) {
      Vec4 four;
      __builtin_memcpy(&four, bias, sizeof(four));
      four += tree_sums(sums[0][m], sums[1][m], sums[2][m], sums[3][m]);
      if constexpr (kWordNumbers<W> == 1) {
        __builtin_memcpy(c, &four, sizeof(four));
        continue;
      }
      for (int n = 0; n < 4; ++n) {
        store_result(c + n, four[n]);
      }
    } else {
#pragma GCC unroll 4
      for (int n = 0; n < Columns; ++n) {
        store_result(c + n, tree_sum(sums[n][m]) + bias[n]);
      }
    }
  }
}

// The last words of a row, filled up with zeros.
template <class W>
inline VecU last_words(const W* row, std::int64_t count) {
  W rest[kWordNumbers<W> * kFloatLanes] = {};
  __builtin_memcpy(rest, row, static_cast<std::size_t>(count) * sizeof(W));
  return load_words(rest);
}

inline void fetch_ahead(const void* p) {
  __builtin_prefetch(static_cast<const char*>(p) + kAheadBytes, 0, 3);
}

// Adds Columns rows of B that are read side by side.
template <class W, int Rows, int Columns>
inline __attribute__((always_inline)) void add_rows(const FewColumns<W>& of, const W* b,
                                                    VecF (&sums)[Columns][Rows]) {
  constexpr std::int64_t kNumbers = kWordNumbers<W> * kFloatLanes;
  const W* ahead = b;
  VecU words[Columns];
  std::int64_t k = 0;
  for (; k + kNumbers <= of.num_k; k += kNumbers) {
#pragma GCC unroll 4
    for (int n = 0; n < Columns; ++n) {
      words[n] = load_words(b + n * of.b_stride + k);
      fetch_ahead(ahead);
      ahead += kNumbers;
    }
    add_words<W, Rows, Columns>(sums, of.a + k, of.a_stride, words);
  }
  if (k < of.num_k) {
    for (int n = 0; n < Columns; ++n) {
      words[n] = last_words(b + n * of.b_stride + k, of.num_k - k);
    }
    add_words<W, Rows, Columns>(sums, of.a + k, of.a_stride, words);
  }
}

// C of the next Rows rows and Columns columns. With one row of A the rows of B are read one after
// another, as they lie in memory: nearly twice the rate of bfloat16, and their sums, which do not
// depend on each other, overlap all the same.
template <class W, int Rows, int Columns>
void few_tile(const FewColumns<W>& of) {
  VecF sums[Columns][Rows] = {};
  if constexpr (Rows == 1) {
    for (int n = 0; n < Columns; ++n) {
      VecF sum[1][1] = {};
      add_rows<W, 1, 1>(of, of.b + n * of.b_stride, sum);
      sums[n][0] = sum[0][0];
    }
  } else {
    add_rows<W, Rows, Columns>(of, of.b, sums);
  }
  store_sums<W, Rows, Columns>(of, sums);
}

// Rows first..first+Rows-1 of A.
template <class W, int Rows>
void few_group(const Gemm& problem, const float* a, std::int64_t first, GemmRange rows) {
  constexpr int kColumns = kFewColumns<Rows>;
  const std::int64_t a_stride = few_rows_size(problem.k);
  FewColumns<W> of = {
      a + first * a_stride,
      a_stride,
      static_cast<const W*>(problem.b.data) + rows.begin * problem.b.row_stride,
      problem.b.row_stride,
      problem.k,
      problem.bias == nullptr ? nullptr : static_cast<const W*>(problem.bias) + rows.begin,
      static_cast<W*>(problem.c) + first * problem.c_stride + rows.begin,
      problem.c_stride};
  const auto advance = [&of](std::int64_t count) {
    of.b += count * of.b_stride;
    of.bias += of.bias == nullptr ? 0 : count;
    of.c += count;
  };
  std::int64_t n = rows.begin;
  for (; n + kColumns <= rows.end; n += kColumns) {
    few_tile<W, Rows, kColumns>(of);
    advance(kColumns);
  }
  for (; n < rows.end; ++n) {
    few_tile<W, Rows, 1>(of);
    advance(1);
  }
}

template <class W>
void few_rows_of(const Gemm& problem, const float* a, GemmRange rows) {
  std::int64_t m = 0;
  for (; m + 4 <= problem.m; m += 4) {
    few_group<W, 4>(problem, a, m, rows);
  }
  if (m + 2 <= problem.m) {
    few_group<W, 2>(problem, a, m, rows);
    m += 2;
  }
  if (m < problem.m) {
    few_group<W, 1>(problem, a, m, rows);
  }
}

void few_rows(const Gemm& problem, const float* a, GemmRange rows) {
  if (problem.dtype == DType::kFloat32) {
    few_rows_of<float>(problem, a, rows);
  } else {
    few_rows_of<std::uint16_t>(problem, a, rows);
  }
}

// Of a row of bfloat16: the first numbers of a vector of words, then the second ones.
inline void split_row(const std::uint16_t* row, std::int64_t num_k, float* to) {
  constexpr std::int64_t kNumbers = 2 * kFloatLanes;
  for (std::int64_t k = 0; k < num_k; k += kNumbers) {
    std::uint16_t rest[kNumbers] = {};
    const std::uint16_t* from = row + k;
    if (k + kNumbers > num_k) {
      __builtin_memcpy(rest, from, static_cast<std::size_t>(num_k - k) * sizeof(rest[0]));
      from = rest;
    }
    const VecU words = load_words(from);
    store(to + k, (VecF)(words << 16U));
    store(to + k + kFloatLanes, (VecF)(words & 0xFFFF0000U));
  }
}

inline void split_row(const float* row, std::int64_t num_k, float* to) {
  for_each_vector(
      num_k, [&](std::int64_t k, std::int64_t count) { store(to + k, load_row(row + k, count)); });
}

template <class W>
void prepare_rows(const Gemm& problem, float* to) {
  const auto* a = static_cast<const W*>(problem.a.data);
  for (std::int64_t m = 0; m < problem.m; ++m) {
    const W* row = a + m * problem.a.row_stride;
    W block[kPreparedNumbers];
    for (std::int64_t k = 0; k < problem.k; k += kPreparedNumbers) {
      const std::int64_t count = least(kPreparedNumbers, problem.k - k);
      if (problem.a.k_stride == 1) {
        split_row(row + k, count, to + k);
        continue;
      }
      for (std::int64_t i = 0; i < count; ++i) {
        block[i] = row[(k + i) * problem.a.k_stride];
      }
      split_row(block, count, to + k);
    }
    to += few_rows_size(problem.k);
  }
}

void prepare_few_rows(const Gemm& problem, float* a) {
  if (problem.dtype == DType::kFloat32) {
    prepare_rows<float>(problem, a);
  } else {
    prepare_rows<std::uint16_t>(problem, a);
  }
}

}  // namespace
}  // namespace paperlab::kernels::PAPERLAB_ISA
