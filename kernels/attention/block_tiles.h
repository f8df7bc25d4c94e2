#pragma once
// Tiles of 16-bit elements in shared memory, and a warp's products of them. A tile has rows of
// kWidth elements in chunks of 16 bytes; chunk c of row r lies at place c ^ (r % 8), so that the
// eight rows of an 8 x 8 matrix, and the chunks of a row, lie in different banks.

#include <cstdint>

#include "kernels/attention/block_rows.h"
#include "kernels/common/cuda/warp.h"

// Loops whose full length would only make the code long.
#ifdef __CUDA_ARCH__
#define PAPERLAB_UNROLL_4 _Pragma("unroll 4")
#else
#define PAPERLAB_UNROLL_4
#endif

namespace paperlab::kernels {

using Bits = std::uint16_t;  // of a BFloat16 or Float16

constexpr int kChunk = 8;  // elements
constexpr int kBlockWarps = 4;
constexpr int kBlockLanes = kBlockWarps * kWarp;

// Where chunk `chunk` of row `row` begins; width: a multiple of 64.
PAPERLAB_HD constexpr int chunk_at(int row, int chunk, int width) {
  return row * width + (chunk ^ (row & 7)) * kChunk;
}

// Elements whose values do not matter.
PAPERLAB_HD inline BFloat16* as_elements(Bits* bits) { return reinterpret_cast<BFloat16*>(bits); }
PAPERLAB_HD inline Pack load_bits(const Bits* from, std::int64_t count) {
  return load_some(reinterpret_cast<const BFloat16*>(from), count);
}

// Begins to fill a tile: rows of head_dim elements, zeros behind them; row_at(row) is an address or
// null: zeros. Whole packs travel asynchronously. All warps of the block take part; at the end
// their lanes are together again, so that products may follow.
template <int kWidth, int kRows, class Lanes, class RowAt>
PAPERLAB_HD void load_tile(Lanes& warp, int number, Bits* tile, std::int64_t head_dim,
                           bool is_whole, const Bits* anywhere, RowAt row_at) {
  constexpr int kChunks = kWidth / kChunk;
  warp.lanes([&](int lane) {
    PAPERLAB_UNROLL_4
    for (int i = 0; i < kRows * kChunks / kBlockLanes; ++i) {
      const int at = number * kWarp + lane + i * kBlockLanes;
      const int row = at / kChunks;
      const int first = at % kChunks * kChunk;
      const Bits* from = row_at(row);
      const bool is_there = from != nullptr && first < head_dim;
      const int to = chunk_at(row, at % kChunks, kWidth);
      if (is_whole) {
        warp.copy(tile, to, is_there ? from + first : anywhere, is_there);
      } else {
        store_pack(tile + to, is_there ? load_bits(from + first, head_dim - first) : zero_pack());
      }
    }
  });
  warp.converge();
}

// Rows of the queries' shape.
template <int kWidth, int kRows, class Lanes>
PAPERLAB_HD void load_row_tile(Lanes& warp, int number, Bits* tile, const AttentionLaunch& launch,
                               const RowTile& rows, const ConstTensorView& view) {
  load_tile<kWidth, kRows>(
      warp, number, tile, view.size[3], launch.is_whole, static_cast<const Bits*>(view.data),
      [&](int row) -> const Bits* {
        return row < rows.count ? unit_row<const Bits>(view, launch, rows.place, rows.first + row)
                                : nullptr;
      });
}

// The keys or values of `block` that lie in `part`, from a stream that begins at `from`.
template <int kWidth, int kRows, class Lanes>
PAPERLAB_HD void load_key_tile(Lanes& warp, int number, Bits* tile, const Bits* from,
                               std::int64_t stride, const AttentionLaunch& launch,
                               const KeyBlock& block, const KeyBlock& part) {
  const Bits* first = from + block.begin * stride;
  const auto begin = static_cast<int>(part.begin - block.begin);
  const auto end = static_cast<int>(part.end - block.begin);
  load_tile<kWidth, kRows>(warp, number, tile, launch.in.query.size[3], launch.is_whole, from,
                           [=](int row) -> const Bits* {
                             return row >= begin && row < end ? first + row * stride : nullptr;
                           });
}

// ---------------------------------------------------------------------------------------------

template <class Lanes>
using Sums = typename Lanes::template Fragment<float, 4>;  // [16, 8] of a product
template <class Lanes>
using Words = typename Lanes::template Fragment<std::uint32_t, 4>;  // [16, 16], or two [16, 8]

template <class Lanes, int kRowTiles, int kColumnTiles>
PAPERLAB_HD void clear(const Lanes& warp, Sums<Lanes> (&sums)[kRowTiles][kColumnTiles]) {
  warp.lanes([&](int lane) {
    PAPERLAB_UNROLL
    for (int m = 0; m < kRowTiles; ++m) {
      PAPERLAB_UNROLL
      for (int n = 0; n < kColumnTiles; ++n) {
        PAPERLAB_UNROLL
        for (int i = 0; i < 4; ++i) {
          sums[m][n].of(lane)[i] = 0.0F;
        }
      }
    }
  });
}

// sums += A B^T over kWidth: A are rows a_row.. of tile a, B rows b_row.. of tile b.
template <class E, int kWidth, class Lanes, int kRowTiles, int kColumnTiles>
PAPERLAB_HD void multiply_rows(const Lanes& warp, const Bits* a, int a_row, const Bits* b,
                               int b_row, Sums<Lanes> (&sums)[kRowTiles][kColumnTiles]) {
  PAPERLAB_UNROLL
  for (int k = 0; k < kWidth / 16; ++k) {
    Words<Lanes> left[kRowTiles];
    PAPERLAB_UNROLL
    for (int m = 0; m < kRowTiles; ++m) {
      warp.template load<false>(left[m], a, [&](int lane) {
        return chunk_at(a_row + 16 * m + lane % 16, 2 * k + lane / 16, kWidth);
      });
    }
    PAPERLAB_UNROLL
    for (int n = 0; n < kColumnTiles; n += 2) {
      Words<Lanes> right;
      warp.template load<false>(right, b, [&](int lane) {
        return chunk_at(b_row + 8 * n + lane % 8 + lane / 16 * 8, 2 * k + lane / 8 % 2, kWidth);
      });
      PAPERLAB_UNROLL
      for (int m = 0; m < kRowTiles; ++m) {
        warp.template multiply<E, 0>(sums[m][n], left[m], right);
        warp.template multiply<E, 1>(sums[m][n + 1], left[m], right);
      }
    }
  }
}

// The words of a product's 16 columns from 16 k on, as the left matrix of another product.
template <class E, class Lanes, int kColumnTiles>
PAPERLAB_HD void as_left(const Lanes& warp, const Sums<Lanes> (&sums)[kColumnTiles], int k,
                         Words<Lanes>& words) {
  warp.lanes([&](int lane) {
    PAPERLAB_UNROLL
    for (int i = 0; i < 4; ++i) {
      const float (&pair)[4] = sums[2 * k + i / 2].of(lane);
      const int row = i % 2;
      words.of(lane)[i] = row == 0 ? to_word<E>(pair[0], pair[1]) : to_word<E>(pair[2], pair[3]);
    }
  });
}

// sums += A B: A is a product of 8 kInnerTiles columns, B rows b_row.. of tile b.
template <class E, int kWidth, class Lanes, int kRowTiles, int kInnerTiles>
PAPERLAB_HD void multiply_columns(const Lanes& warp, const Sums<Lanes> (&a)[kRowTiles][kInnerTiles],
                                  const Bits* b, int b_row,
                                  Sums<Lanes> (&sums)[kRowTiles][kWidth / 8]) {
  PAPERLAB_UNROLL
  for (int k = 0; k < kInnerTiles / 2; ++k) {
    Words<Lanes> left[kRowTiles];
    PAPERLAB_UNROLL
    for (int m = 0; m < kRowTiles; ++m) {
      as_left<E>(warp, a[m], k, left[m]);
    }
    PAPERLAB_UNROLL
    for (int n = 0; n < kWidth / 8; n += 2) {
      Words<Lanes> right;
      warp.template load<true>(right, b, [&](int lane) {
        return chunk_at(b_row + 16 * k + lane % 16, n + lane / 16, kWidth);
      });
      PAPERLAB_UNROLL
      for (int m = 0; m < kRowTiles; ++m) {
        warp.template multiply<E, 0>(sums[m][n], left[m], right);
        warp.template multiply<E, 1>(sums[m][n + 1], left[m], right);
      }
    }
  }
}

// ---------------------------------------------------------------------------------------------

// Rounds a warp's sums, times factor(lane, m, half) a row (half: rows 0..7 or 8..15 of a matrix),
// into rows `row`.. of a tile.
template <class E, int kWidth, class Lanes, int kRowTiles, class Factor>
PAPERLAB_HD void store_sums(const Lanes& warp, const Sums<Lanes> (&sums)[kRowTiles][kWidth / 8],
                            Bits* tile, int row, Factor factor) {
  warp.lanes([&](int lane) {
    PAPERLAB_UNROLL
    for (int m = 0; m < kRowTiles; ++m) {
      PAPERLAB_UNROLL
      for (int half = 0; half < 2; ++half) {
        const MatrixPlace at = place_in_c(lane, 2 * half);
        const float by = factor(lane, m, half);
        PAPERLAB_UNROLL
        for (int n = 0; n < kWidth / 8; ++n) {
          const float* pair = sums[m][n].of(lane) + 2 * half;
          const std::uint32_t word = to_word<E>(by * pair[0], by * pair[1]);
          Bits* to = tile + chunk_at(row + 16 * m + at.row, n, kWidth) + at.column;
          store_word(to, word);
        }
      }
    }
  });
}

// Copies a tile's rows of head_dim elements to the addresses that row_at names (null: none).
template <int kWidth, int kRows, class Lanes, class RowAt>
PAPERLAB_HD void store_tile(const Lanes& warp, int number, const Bits* tile, std::int64_t head_dim,
                            bool is_whole, RowAt row_at) {
  constexpr int kChunks = kWidth / kChunk;
  warp.lanes([&](int lane) {
    for (int at = number * kWarp + lane; at < kRows * kChunks; at += kBlockLanes) {
      const int row = at / kChunks;
      const int first = at % kChunks * kChunk;
      Bits* to = row_at(row);
      if (to != nullptr && first < head_dim) {
        const Pack pack = warp.read(tile + chunk_at(row, at % kChunks, kWidth));
        store_of_row(as_elements(to), first, head_dim, is_whole, pack);
      }
    }
  });
}

}  // namespace paperlab::kernels
