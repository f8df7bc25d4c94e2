#pragma once
// How the strings of a group are cut into rows, columns and tasks. Pure arithmetic of shapes,
// shared by the CPU and CUDA kernels, so that a task's result does not depend on who runs it.

#include "kernels/common/affine_strings.h"

namespace paperlab::kernels {

// 512 columns: four tables of doubles take 16 KiB, half of the smallest level-1 cache.
constexpr int kMaxColumnBits = 9;
// 16384 strings: some 20 microseconds, so that two threads share a step of 16-token strings evenly.
constexpr int kTaskRows = 32;
// Lanes of a vector: shorter tables are padded.
constexpr int kColumnLanes = 8;

// Bits 0..row_bits-1 of a string's index number its row, the others its column. Bit 0, the label,
// is always a row's: rows 2i and 2i+1 differ in the label alone.
struct FoldShape {
  int row_bits;
  int column_bits;
};

PAPERLAB_HD constexpr FoldShape fold_shape(int num_bits) {
  const int half = num_bits / 2 + 1;
  const int wanted = half < kMaxColumnBits ? half : kMaxColumnBits;
  const int column_bits = wanted < num_bits - 1 ? wanted : num_bits - 1;
  return {num_bits - column_bits, column_bits};
}

PAPERLAB_HD constexpr int num_rows(FoldShape shape) { return 1 << shape.row_bits; }
PAPERLAB_HD constexpr int num_columns(FoldShape shape) { return 1 << shape.column_bits; }
PAPERLAB_HD constexpr int padded_columns(FoldShape shape) {
  const int columns = num_columns(shape);
  return columns < kColumnLanes ? kColumnLanes : columns;
}
// A group of length 1 is one string and one task.
PAPERLAB_HD constexpr int num_tasks(int num_bits) {
  return num_bits == 0 ? 1 : (num_rows(fold_shape(num_bits)) + kTaskRows - 1) / kTaskRows;
}

struct RowRange {
  int begin;
  int end;
};

PAPERLAB_HD constexpr RowRange task_rows(FoldShape shape, int task) {
  const int begin = task * kTaskRows;
  const int end = begin + kTaskRows;
  return {begin, end < num_rows(shape) ? end : num_rows(shape)};
}

PAPERLAB_HD constexpr std::uint32_t row_mask(FoldShape shape, std::uint32_t mask) {
  return mask & ((1U << static_cast<unsigned>(shape.row_bits)) - 1U);
}
PAPERLAB_HD constexpr std::uint32_t column_mask(FoldShape shape, std::uint32_t mask) {
  return mask >> static_cast<unsigned>(shape.row_bits);
}

// Every position must read rows alone or columns alone: Z and N are then row part + column part.
PAPERLAB_HD constexpr bool is_foldable(const AffineGroup& group) {
  if (group.num_bits < 1) {
    return group.length == 1 && group.num_bits == 0;
  }
  const FoldShape shape = fold_shape(group.num_bits);
  for (int l = 0; l + 1 < group.length; ++l) {
    if (row_mask(shape, group.mask[l]) != 0 && column_mask(shape, group.mask[l]) != 0) {
      return false;
    }
  }
  return true;
}

// The token of a position that reads rows alone (or nothing).
PAPERLAB_HD inline int row_token(const AffineGroup& group, FoldShape shape, int l, int row) {
  return parity(static_cast<std::uint32_t>(row) & row_mask(shape, group.mask[l])) ^ group.flip[l];
}

// A group of length 1 has one row and one column.
PAPERLAB_HD constexpr FoldShape tile_shape(int num_bits) {
  return num_bits == 0 ? FoldShape{0, 0} : fold_shape(num_bits);
}

PAPERLAB_HD constexpr std::uint32_t string_index(FoldShape shape, int row, int column) {
  return static_cast<std::uint32_t>(row) | static_cast<std::uint32_t>(column)
                                               << static_cast<unsigned>(shape.row_bits);
}

// Bit l: position l reads columns. All others, the last one included, belong to the row.
PAPERLAB_HD inline std::uint32_t column_positions(const AffineGroup& group, FoldShape shape) {
  std::uint32_t positions = 0;
  for (int l = 0; l + 1 < group.length; ++l) {
    positions |= (column_mask(shape, group.mask[l]) != 0 ? 1U : 0U) << static_cast<unsigned>(l);
  }
  return positions;
}

// Bit l: the token at position l of the strings of a row; 0 at the positions of columns.
PAPERLAB_HD inline std::uint32_t row_word(const AffineGroup& group, FoldShape shape, int row) {
  auto word = static_cast<std::uint32_t>(group.query) << static_cast<unsigned>(group.length - 1);
  for (int l = 0; l + 1 < group.length; ++l) {
    if (column_mask(shape, group.mask[l]) == 0) {
      word |= static_cast<std::uint32_t>(row_token(group, shape, l, row))
              << static_cast<unsigned>(l);
    }
  }
  return word;
}

// The same of a column: 0 at the positions of rows.
PAPERLAB_HD inline std::uint32_t column_word(const AffineGroup& group, FoldShape shape,
                                             int column) {
  std::uint32_t word = 0;
  for (int l = 0; l + 1 < group.length; ++l) {
    const std::uint32_t mask = column_mask(shape, group.mask[l]);
    if (mask != 0) {
      const int token = parity(static_cast<std::uint32_t>(column) & mask) ^ group.flip[l];
      word |= static_cast<std::uint32_t>(token) << static_cast<unsigned>(l);
    }
  }
  return word;
}

// The tokens of columns 8 block .. 8 block + 7, one bit each.
PAPERLAB_HD inline std::uint8_t column_tokens(const AffineGroup& group, FoldShape shape, int l,
                                              int block) {
  const std::uint8_t lanes =
      lane_parities(column_mask(shape, group.mask[l]), static_cast<std::uint32_t>(block));
  return group.flip[l] != 0 ? static_cast<std::uint8_t>(~lanes) : lanes;
}

}  // namespace paperlab::kernels
