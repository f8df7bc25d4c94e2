#pragma once
// What cpu.cpp exports once per instruction set: packing, tiles of packed panels, and few rows.

#include "kernels/gemm/gemm.h"
#include "kernels/gemm/tile.h"

namespace paperlab::kernels {

// Rows first..first+count-1 of an operand and terms of it, packed as [terms][width] in the
// accumulator's type; rows that are absent are 0. `left` rows of the operand begin at `first`: more
// than count may be read, and 15 numbers behind the panel written, where count is the width.
struct GemmPanel {
  const GemmOperand* from;
  DType dtype;
  std::int64_t first;
  std::int64_t count;
  std::int64_t left;
  std::int64_t width;
  GemmRange terms;
  void* to;
};

// A slab whose operands are packed: panel p and block k of A's at
// a + ((p - rows.begin) * blocks.size() + k - blocks.begin) * row_panel_size, B's likewise.
struct PackedSlab {
  GemmTiles tiles;
  GemmSlab at;
  const void* a;
  const void* b;
  const void* bias;  // of dtype; absent: zeros
  DType dtype;       // the product's
  void* c;           // the slab's first element, of the accumulator's type
  std::int64_t c_stride;
};

struct GemmCpu {
  // The register tile, of float32 and float64.
  std::int64_t tile_rows;
  std::int64_t tile_columns_float32;
  std::int64_t tile_columns_float64;
  void (*pack)(const GemmPanel& panel);
  // C of panels of rows and of columns: += from the second block on.
  void (*multiply)(const PackedSlab& slab, GemmRange rows, GemmRange columns);
  // `count` float32 numbers as bfloat16.
  void (*narrow)(const float* from, std::int64_t count, std::uint16_t* to);
  // M <= kFewRows, rows of B contiguous, float32 or bfloat16. `rows` of B. `a` is what
  // prepare_few_rows made of A: few_rows_size(K) numbers a row.
  void (*few_rows)(const Gemm& problem, const float* a, GemmRange rows);
  void (*prepare_few_rows)(const Gemm& problem, float* a);
};

// A row of A as few_rows reads it: padded with zeros to whole vectors of every instruction set.
PAPERLAB_HD constexpr std::int64_t few_rows_size(std::int64_t k) { return ceil_div(k, 32) * 32; }

namespace generic {
GemmCpu gemm_cpu();
}
namespace avx2 {
GemmCpu gemm_cpu();
}
namespace avx512 {
GemmCpu gemm_cpu();
}

}  // namespace paperlab::kernels
