#pragma once
// How a product is cut: functions of shapes and of the instruction set's register tile alone.

#include <cstdint>

#include "paperlab/core/host_device.h"

namespace paperlab::kernels {

// Up to so many rows of A, and if the rows of B are contiguous, B is read where it lies, once.
constexpr std::int64_t kFewRows = 32;

// Terms that a register tile adds up before they go to C: a panel of B, 32 columns, stays in the
// first-level cache, and chains of additions stay short.
constexpr std::int64_t kMostTerms = 320;

// Elements of a packed operand of a slab: the last-level cache holds both.
constexpr std::int64_t kSlabElements = std::int64_t{1} << 21;
constexpr std::int64_t kSlabTerms = 2048;
constexpr std::int64_t kSlabRows = 2048;  // of A and of B

// Where few rows of both meet many terms (the gradient of a weight), so many packed elements of
// both: they are multiplied while a second-level cache still holds them.
constexpr std::int64_t kNearElements = 5 * (std::int64_t{1} << 16);

PAPERLAB_HD constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) {
  return (a + b - 1) / b;
}
PAPERLAB_HD constexpr std::int64_t least(std::int64_t a, std::int64_t b) { return a < b ? a : b; }
PAPERLAB_HD constexpr std::int64_t most(std::int64_t a, std::int64_t b) { return a < b ? b : a; }

struct GemmRange {
  std::int64_t begin;
  std::int64_t end;
  PAPERLAB_HD constexpr std::int64_t size() const { return end - begin; }
  bool operator==(const GemmRange&) const = default;
};

// Part `index` of `parts` nearly equal parts of 0..count-1, the sizes of which differ by 1 at most.
PAPERLAB_HD constexpr GemmRange part_of(std::int64_t count, std::int64_t parts,
                                        std::int64_t index) {
  return {index * count / parts, (index + 1) * count / parts};
}
PAPERLAB_HD constexpr GemmRange part_of(GemmRange range, std::int64_t parts, std::int64_t index) {
  const GemmRange part = part_of(range.size(), parts, index);
  return {range.begin + part.begin, range.begin + part.end};
}

// Run `index` of runs of `size` of 0..count-1; the last may be short.
PAPERLAB_HD constexpr GemmRange run_of(std::int64_t count, std::int64_t size, std::int64_t index) {
  return {index * size, least((index + 1) * size, count)};
}

// A product in panels: of rows of A (at most tile_rows, nearly equal), of rows of B (tile_columns,
// the last padded), of terms (k_block). A slab is what is packed at a time.
struct GemmTiles {
  std::int64_t m;
  std::int64_t n;
  std::int64_t k;
  std::int64_t tile_rows;
  std::int64_t tile_columns;
  std::int64_t row_panels;
  std::int64_t column_panels;
  std::int64_t k_block;
  std::int64_t k_blocks;
  std::int64_t slab_row_panels;
  std::int64_t slab_column_panels;
  std::int64_t slab_k_blocks;

  PAPERLAB_HD constexpr GemmRange rows(std::int64_t panel) const {
    return part_of(m, row_panels, panel);
  }
  PAPERLAB_HD constexpr GemmRange columns(std::int64_t panel) const {
    return run_of(n, tile_columns, panel);
  }
  PAPERLAB_HD constexpr GemmRange terms(std::int64_t block) const {
    return run_of(k, k_block, block);
  }
  // Of a packed panel, in elements: the last row of A's may be overwritten by a vector.
  PAPERLAB_HD constexpr std::int64_t row_panel_size() const { return tile_rows * k_block + 16; }
  PAPERLAB_HD constexpr std::int64_t column_panel_size() const { return tile_columns * k_block; }
};

// For M, N, K >= 1.
PAPERLAB_HD constexpr GemmTiles gemm_tiles(std::int64_t m, std::int64_t n, std::int64_t k,
                                           std::int64_t tile_rows, std::int64_t tile_columns) {
  GemmTiles tiles{};
  tiles.m = m;
  tiles.n = n;
  tiles.k = k;
  tiles.tile_rows = tile_rows;
  tiles.tile_columns = tile_columns;
  tiles.row_panels = ceil_div(m, tile_rows);
  tiles.column_panels = ceil_div(n, tile_columns);
  tiles.k_block = ceil_div(ceil_div(k, ceil_div(k, kMostTerms)), 16) * 16;
  tiles.k_blocks = ceil_div(k, tiles.k_block);
  tiles.slab_k_blocks = least(tiles.k_blocks, kSlabTerms / tiles.k_block);
  const std::int64_t near_blocks = kNearElements / ((m + n) * tiles.k_block);
  if (near_blocks >= 1) {
    tiles.slab_k_blocks = least(tiles.slab_k_blocks, near_blocks);
  }
  const std::int64_t terms = tiles.slab_k_blocks * tiles.k_block;
  const std::int64_t rows = least(kSlabRows, kSlabElements / terms);
  tiles.slab_row_panels = least(tiles.row_panels, rows / tile_rows);
  tiles.slab_column_panels = least(tiles.column_panels, rows / tile_columns);
  return tiles;
}

// Of panels of rows, of columns, of blocks of terms.
struct GemmSlab {
  GemmRange rows;
  GemmRange columns;
  GemmRange blocks;
};

// A task: panels of rows times panels of columns. Four panels of rows stay in a second-level cache;
// fewer columns where there would be fewer than kLeastTasks tasks.
constexpr std::int64_t kTaskRowPanels = 4;
constexpr std::int64_t kTaskColumnPanels = 8;
constexpr std::int64_t kLeastTasks = 16;

struct GemmGrid {
  std::int64_t row_parts;
  std::int64_t column_parts;
  PAPERLAB_HD constexpr std::int64_t num_tasks() const { return row_parts * column_parts; }
};

PAPERLAB_HD constexpr GemmGrid task_grid(const GemmSlab& slab) {
  const std::int64_t row_parts = ceil_div(slab.rows.size(), kTaskRowPanels);
  const std::int64_t column_parts =
      most(ceil_div(slab.columns.size(), kTaskColumnPanels), ceil_div(kLeastTasks, row_parts));
  return {row_parts, least(column_parts, slab.columns.size())};
}

// Rows of B of a task with few rows of A: some 128 KiB, a multiple of 4.
PAPERLAB_HD constexpr std::int64_t few_rows_task(std::int64_t row_bytes) {
  return most(1, (std::int64_t{1} << 17) / (4 * most(row_bytes, 1))) * 4;
}

}  // namespace paperlab::kernels
