#pragma once
// Rows of a group of tokens: products with one vector, sums with weights, softmax. Include only
// from cpu.cpp.

#include "kernels/common/vec_lanes.h"
#include "kernels/common/vec_row.h"
#include "kernels/group_pool/cpu.h"

namespace paperlab::kernels::PAPERLAB_ISA {
namespace {

// Row n at data + n stride elements.
template <class T>
struct Rows {
  T* data;
  std::int64_t stride;
  T* operator[](std::int64_t n) const { return data + n * stride; }
};

// Rows t.. of head h.
template <class T>
inline Rows<const T> rows_at(const ConstTensorView& view, std::int64_t b, std::int64_t h,
                             std::int64_t t) {
  return {static_cast<const T*>(view.data) + b * view.stride[0] + h * view.stride[1] +
              t * view.stride[2],
          view.stride[2]};
}
template <class T>
inline Rows<T> rows_at(const TensorView& view, std::int64_t b, std::int64_t h, std::int64_t t) {
  return {static_cast<T*>(view.data) + b * view.stride[0] + h * view.stride[1] + t * view.stride[2],
          view.stride[2]};
}

template <class T>
inline void clear_row(T* row, std::int64_t width) {
  __builtin_memset(row, 0, static_cast<std::size_t>(width) * sizeof(T));
}

// A row as float32.
template <class T>
inline void widen(const T* row, std::int64_t width, float* out) {
  for_each_vector(width, [&](std::int64_t d, std::int64_t count) {
    store_row(out + d, count, load_row(row + d, count));
  });
}

// out[n] = scale x . row n for `num_rows` rows; writes whole vectors.
template <class T>
inline void dot_rows(const float* x, const Rows<const T>& rows, std::int64_t num_rows,
                     std::int64_t width, float scale, float* out) {
  for (std::int64_t first = 0; first < num_rows; first += kFloatLanes) {
    const T* at[kFloatLanes];
    VecF terms[kFloatLanes];
#pragma GCC unroll 16
    for (std::int64_t i = 0; i < kFloatLanes; ++i) {
      at[i] = rows[first + i < num_rows ? first + i : num_rows - 1];
      terms[i] = zero();
    }
    for_each_vector(width, [&](std::int64_t d, std::int64_t count) {
      const VecF q = load_row(x + d, count);
#pragma GCC unroll 16
      for (std::int64_t i = 0; i < kFloatLanes; ++i) {
        terms[i] = fma(q, load_row(at[i] + d, count), terms[i]);
      }
    });
    store(out + first, sum_lanes(terms) * set1(scale));
  }
}

// Columns d.. of N vectors of `count` lanes: sum over n of weights[n] row n.
template <int N, class T, class Out>
inline void sum_columns(const float* weights, const Rows<const T>& rows, std::int64_t num_rows,
                        std::int64_t d, std::int64_t count, Out* out) {
  VecF sums[N] = {};
  for (std::int64_t n = 0; n < num_rows; ++n) {
    const T* row = rows[n] + d;
    const VecF weight = set1(weights[n]);
    for (int i = 0; i < N; ++i) {
      sums[i] = fma(weight, load_row(row + i * kFloatLanes, count), sums[i]);
    }
  }
  for (int i = 0; i < N; ++i) {
    store_row(out + d + i * kFloatLanes, count, sums[i]);
  }
}

template <class T, class Out>
inline void sum_rows(const float* weights, const Rows<const T>& rows, std::int64_t num_rows,
                     std::int64_t width, Out* out) {
  std::int64_t d = 0;
  for (; d + 4 * kFloatLanes <= width; d += 4 * kFloatLanes) {
    sum_columns<4>(weights, rows, num_rows, d, kFloatLanes, out);
  }
  for_each_vector(width - d, [&](std::int64_t rest, std::int64_t count) {
    sum_columns<1>(weights, rows, num_rows, d + rest, count, out);
  });
}

// The larger, and a NaN where there is one.
inline VecF larger_or_nan(VecF most, VecF x) { return ((x > most) | (x != x)) ? x : most; }

// The maximum of each column, as float32 vectors.
template <class T>
inline VecF largest_in_column(const Rows<const T>& rows, std::int64_t num_rows, std::int64_t d,
                              std::int64_t count) {
  VecF most = load_row(rows[0] + d, count);
  for (std::int64_t n = 1; n < num_rows; ++n) {
    most = larger_or_nan(most, load_row(rows[n] + d, count));
  }
  return most;
}

// Logits to weights in place, whole vectors; those beyond num_rows are 0.
inline void to_softmax(std::int64_t num_rows, float* logits) {
  const float infinity = __builtin_inff();
  for (std::int64_t n = num_rows; n % kFloatLanes != 0; ++n) {
    logits[n] = -infinity;
  }
  VecF most = set1(-infinity);
  for (std::int64_t n = 0; n < num_rows; n += kFloatLanes) {
    most = max(load(logits + n), most);
  }
  const float largest = fold_lanes(most, [](VecF a, VecF b) { return max(a, b); });
  VecF sums = zero();
  for (std::int64_t n = 0; n < num_rows; n += kFloatLanes) {
    const VecF weights = exp(load(logits + n) - largest);
    sums += weights;
    store(logits + n, weights);
  }
  const float sum = fold_lanes(sums, [](VecF a, VecF b) { return a + b; });
  for (std::int64_t n = 0; n < num_rows; n += kFloatLanes) {
    store(logits + n, load(logits + n) / sum);
  }
}

// The mean of `num_heads` rows of one token, head by head.
template <class T>
inline void mean_of_heads(const T* row, std::int64_t head_stride, std::int64_t num_heads,
                          std::int64_t width, float* out) {
  for_each_vector(width, [&](std::int64_t d, std::int64_t count) {
    VecF sum = load_row(row + d, count);
    for (std::int64_t h = 1; h < num_heads; ++h) {
      sum += load_row(row + h * head_stride + d, count);
    }
    store_row(out + d, count, sum / static_cast<float>(num_heads));
  });
}

}  // namespace
}  // namespace paperlab::kernels::PAPERLAB_ISA
