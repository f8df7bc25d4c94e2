#pragma once
// The register tile: some rows of A times two vectors of columns. Include only from cpu.cpp.

#include "kernels/common/number.h"
#include "kernels/gemm/cpu.h"
#include "kernels/gemm/cpu_lanes.h"

namespace paperlab::kernels::PAPERLAB_ISA {
namespace {

// Sums in registers: with 32 of them 14 x 2, 2 vectors of B and a number of A; with 16 6 x 2; the
// generic product needs a register for itself.
#if defined(__AVX512F__)
constexpr std::int64_t kTileRows = 14;
#elif defined(__AVX2__) && defined(__FMA__)
constexpr std::int64_t kTileRows = 6;
#else
constexpr std::int64_t kTileRows = 4;
#endif
template <class T>
constexpr std::int64_t kTileColumns = 2 * LanesOf<T>::kCount;

// Where a tile goes.
template <class T>
struct TileOut {
  T* c;
  std::int64_t stride;
  std::int64_t columns;  // of kTileColumns
  const T* start;        // [kTileColumns] that is added; absent: what C holds
};

// c[m][n] = start[n] (or c[m][n]) + sum over k of a[k][m] b[k][n] for Rows rows.
template <class T, int Rows>
void multiply_tile(const T* a, const T* b, std::int64_t num_k, const TileOut<T>& out) {
  using Vec = typename LanesOf<T>::Vec;
  constexpr std::int64_t kLanes = LanesOf<T>::kCount;
  Vec sums[Rows][2] = {};
  for (std::int64_t k = 0; k < num_k; ++k) {
    const Vec first = load(b);
    const Vec second = load(b + kLanes);
#pragma GCC unroll 14
    for (int m = 0; m < Rows; ++m) {
      const Vec number = set1(a[m]);
      sums[m][0] = fma(number, first, sums[m][0]);
      sums[m][1] = fma(number, second, sums[m][1]);
    }
    a += Rows;
    b += 2 * kLanes;
  }
  const bool is_whole = out.columns == 2 * kLanes;
#pragma GCC unroll 14
  for (int m = 0; m < Rows; ++m) {
    T* c = out.c + m * out.stride;
    T rest[2 * kLanes];
    T* to = c;
    const T* from = out.start != nullptr ? out.start : c;
    if (!is_whole) {
      to = rest;
      if (out.start == nullptr) {
        __builtin_memset(rest, 0, sizeof(rest));
        __builtin_memcpy(rest, c, static_cast<std::size_t>(out.columns) * sizeof(T));
        from = rest;
      }
    }
    store(to, load(from) + sums[m][0]);
    store(to + kLanes, load(from + kLanes) + sums[m][1]);
    if (!is_whole) {
      __builtin_memcpy(c, rest, static_cast<std::size_t>(out.columns) * sizeof(T));
    }
  }
}

// The tile of `rows` rows, at most Rows.
template <class T, int Rows = kTileRows>
inline void multiply_rows(std::int64_t rows, const T* a, const T* b, std::int64_t num_k,
                          const TileOut<T>& out) {
  if constexpr (Rows > 0) {
    if (rows == Rows) {
      multiply_tile<T, Rows>(a, b, num_k, out);
    } else {
      multiply_rows<T, Rows - 1>(rows, a, b, num_k, out);
    }
  }
}

template <class T>
void load_bias(const PackedSlab& slab, GemmRange columns, T* bias) {
  for (std::int64_t i = 0; i < kTileColumns<T>; ++i) {
    const bool is_there = slab.bias != nullptr && i < columns.size();
    bias[i] =
        is_there ? static_cast<T>(load_number(slab.bias, slab.dtype, columns.begin + i)) : T{0};
  }
}

// Panels of rows times a panel of columns: its blocks stay in the first-level cache.
template <class T>
void multiply_column(const PackedSlab& slab, GemmRange rows, std::int64_t column) {
  const GemmTiles& tiles = slab.tiles;
  const GemmSlab& at = slab.at;
  const GemmRange columns = tiles.columns(column);
  alignas(64) T bias[kTileColumns<T>];
  load_bias(slab, columns, bias);
  for (std::int64_t block = at.blocks.begin; block < at.blocks.end; ++block) {
    const std::int64_t k = block - at.blocks.begin;
    const T* b = static_cast<const T*>(slab.b) +
                 ((column - at.columns.begin) * at.blocks.size() + k) * tiles.column_panel_size();
    for (std::int64_t panel = rows.begin; panel < rows.end; ++panel) {
      const T* a = static_cast<const T*>(slab.a) +
                   ((panel - at.rows.begin) * at.blocks.size() + k) * tiles.row_panel_size();
      const GemmRange of = tiles.rows(panel);
      T* c = static_cast<T*>(slab.c) +
             (of.begin - tiles.rows(at.rows.begin).begin) * slab.c_stride + columns.begin -
             tiles.columns(at.columns.begin).begin;
      multiply_rows<T>(of.size(), a, b, tiles.terms(block).size(),
                       {c, slab.c_stride, columns.size(), block == 0 ? bias : nullptr});
    }
  }
}

template <class T>
void multiply_panels(const PackedSlab& slab, GemmRange rows, GemmRange columns) {
  for (std::int64_t column = columns.begin; column < columns.end; ++column) {
    multiply_column<T>(slab, rows, column);
  }
}

}  // namespace
}  // namespace paperlab::kernels::PAPERLAB_ISA
