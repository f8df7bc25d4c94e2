#pragma once
// Operands of the generator's products as a block of GPU threads reads them (host-device): matrices
// of any dtype and either order, four neighbouring elements at a time.

#include "kernels/common/cuda/elements.h"
#include "kernels/depth_aggregate/tile.h"

namespace paperlab::kernels::depth {

constexpr int kProductThreads = 128;
constexpr int kTileSize = 64;    // rows and columns of a tile of the product
constexpr int kTileTerms = 32;   // that lie in shared memory at a time
constexpr int kTileStride = 36;  // of a row of them: 4 banks further, 16-byte multiples
constexpr int kQuad = 4;
constexpr int kQuadsOfThread = kTileSize * kTileTerms / kQuad / kProductThreads;

// ---------------------------------------------------------------------------------------------

// Element `at` of data of any dtype. In float32 nothing is float64, and the other way round.
template <class Number>
PAPERLAB_HD Number number_at(const void* data, DType dtype, std::int64_t at) {
  if constexpr (sizeof(Number) == 8) {
    return static_cast<const double*>(data)[at];
  } else {
    return dtype == DType::kFloat32    ? static_cast<const float*>(data)[at]
           : dtype == DType::kBFloat16 ? to_number(static_cast<const BFloat16*>(data)[at])
                                       : to_number(static_cast<const Float16*>(data)[at]);
  }
}

template <class Number>
PAPERLAB_HD void store_number_at(void* data, DType dtype, std::int64_t at, Number x) {
  if constexpr (sizeof(Number) == 8) {
    static_cast<double*>(data)[at] = x;
  } else if (dtype == DType::kFloat32) {
    static_cast<float*>(data)[at] = x;
  } else if (dtype == DType::kBFloat16) {
    static_cast<BFloat16*>(data)[at] = to_element<BFloat16>(x);
  } else {
    static_cast<Float16*>(data)[at] = to_element<Float16>(x);
  }
}

// Element (row, term) lies at data[row * row_stride + term * term_stride]; one stride is 1.
struct ProductOperand {
  const void* data;
  DType dtype;
  std::int64_t row_stride;
  std::int64_t term_stride;
  bool has_quads;  // four neighbours, from a multiple of 4 on, can be loaded at once
  // Elements are numbers that the tensor cores hold exactly: 16 bits, as they come.
  bool is_exact;

  PAPERLAB_HD bool is_along_terms() const { return term_stride == 1; }
};

template <class T>
PAPERLAB_HD void load_halves(const void* data, std::int64_t at, float (&to)[kQuad]) {
#ifdef __CUDA_ARCH__
  const uint2 words = *reinterpret_cast<const uint2*>(static_cast<const T*>(data) + at);
  const std::uint32_t word[2] = {words.x, words.y};
#else
  std::uint32_t word[2];
  std::memcpy(&word, static_cast<const T*>(data) + at, sizeof(word));
#endif
  PAPERLAB_UNROLL
  for (std::ptrdiff_t i = 0; i < 2; ++i) {
    to[2 * i] = to_number(T{static_cast<std::uint16_t>(word[i])});
    to[2 * i + 1] = to_number(T{static_cast<std::uint16_t>(word[i] >> 16U)});
  }
}

// Four neighbours at a multiple of their size.
template <class Number>
PAPERLAB_HD void load_whole_quad(const void* data, DType dtype, std::int64_t at,
                                 Number (&to)[kQuad]) {
  if constexpr (sizeof(Number) == 8) {
    for (int i = 0; i < kQuad; ++i) {
      to[i] = static_cast<const double*>(data)[at + i];
    }
  } else if (dtype == DType::kFloat32) {
    unpack<float>(load_pack(static_cast<const float*>(data) + at), to);
  } else if (dtype == DType::kBFloat16) {
    load_halves<BFloat16>(data, at, to);
  } else {
    load_halves<Float16>(data, at, to);
  }
}

struct QuadPlace {
  int row;
  int term;
};

// Quad `i` of a thread. Where neighbours are terms, 8 threads read a row; where they are rows, 4
// threads read 16 neighbours of a term and 8 write side by side into shared memory.
PAPERLAB_HD constexpr QuadPlace quad_place(int thread, int i, bool is_along_terms) {
  if (is_along_terms) {
    return {i * (kProductThreads / 8) + thread / 8, thread % 8 * kQuad};
  }
  return {(thread / 8 % 4 + i * 4) * kQuad, thread % 8 + thread / 32 * 8};
}

// Rows and terms that exist.
struct OperandRange {
  std::int64_t first_row;
  std::int64_t num_rows;
  std::int64_t first_term;
  std::int64_t end_term;
};

// Zeros beyond the range.
template <class Number>
PAPERLAB_HD void load_quad(const ProductOperand& of, const OperandRange& range, QuadPlace place,
                           Number (&to)[kQuad]) {
  const std::int64_t row = range.first_row + place.row;
  const std::int64_t term = range.first_term + place.term;
  const bool is_along_terms = of.is_along_terms();
  const std::int64_t left = row >= range.num_rows || term >= range.end_term ? 0
                            : is_along_terms                                ? range.end_term - term
                                                                            : range.num_rows - row;
  const std::int64_t at = row * of.row_stride + term * of.term_stride;
  if (of.has_quads && left >= kQuad) {
    load_whole_quad(of.data, of.dtype, at, to);
  } else {
    PAPERLAB_UNROLL
    for (int i = 0; i < kQuad; ++i) {
      to[i] = i < left ? number_at<Number>(of.data, of.dtype, at + i) : Number{0};
    }
  }
}

// tile [kTileSize, kTileStride]
template <class Number>
PAPERLAB_HD void store_quad(const Number (&quad)[kQuad], QuadPlace place, bool is_along_terms,
                            Number* tile) {
  Number* to = tile + place.row * kTileStride + place.term;
  if constexpr (sizeof(Number) == 4) {
    if (is_along_terms) {
      store_pack(to, to_pack<Number>(quad));
      return;
    }
  }
  PAPERLAB_UNROLL
  for (int i = 0; i < kQuad; ++i) {
    to[is_along_terms ? i : i * kTileStride] = quad[i];
  }
}

}  // namespace paperlab::kernels::depth
