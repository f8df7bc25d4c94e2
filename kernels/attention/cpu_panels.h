#pragma once
// Rows of tensors to and from scratch memory: padded, float32, transposed where rows must lie in
// the lanes. Include only from cpu.cpp or cpu_bfloat16.cpp.

#include "kernels/attention/cpu.h"
#include "kernels/attention/cpu_products.h"

namespace paperlab::kernels::PAPERLAB_ISA {
namespace {

// Hands out pieces of a task's scratch memory.
class Scratch {
 public:
  explicit Scratch(float* begin) : next_(begin) {}
  float* take(std::int64_t count) {
    float* piece = next_;
    next_ += (count + 15) / 16 * 16;  // whole cache lines
    return piece;
  }

 private:
  float* next_;
};

inline void copy_row(const float* src, std::int64_t count, float* dst) {
  __builtin_memcpy(dst, src, static_cast<std::size_t>(count) * sizeof(float));
}

inline void copy_row(const std::uint16_t* src, std::int64_t count, float* dst) {
  std::int64_t d = 0;
  for (; d + kFloatLanes <= count; d += kFloatLanes) {
    store(dst + d, load_bfloat16(src + d));
  }
  for (; d < count; ++d) {
    const std::uint32_t bits = std::uint32_t{src[d]} << 16U;
    __builtin_memcpy(dst + d, &bits, sizeof(bits));
  }
}

inline void copy_row(const float* src, std::int64_t count, std::uint16_t* dst) {
  std::int64_t d = 0;
  for (; d + kFloatLanes <= count; d += kFloatLanes) {
    store_bfloat16(dst + d, load(src + d));
  }
  if (d < count) {
    float rest[kFloatLanes] = {};
    std::uint16_t half[kFloatLanes];
    copy_row(src + d, count - d, rest);
    store_bfloat16(half, load(rest));
    __builtin_memcpy(dst + d, half, static_cast<std::size_t>(count - d) * sizeof(half[0]));
  }
}

// `count` numbers at element `offset` of data, as float32.
inline void load_row(const void* data, DType dtype, std::int64_t offset, std::int64_t count,
                     float* dst) {
  if (dtype == DType::kFloat32) {
    copy_row(static_cast<const float*>(data) + offset, count, dst);
  } else {
    copy_row(static_cast<const std::uint16_t*>(data) + offset, count, dst);
  }
}

inline void store_row(const float* src, std::int64_t count, void* data, DType dtype,
                      std::int64_t offset) {
  if (dtype == DType::kFloat32) {
    copy_row(src, count, static_cast<float*>(data) + offset);
  } else {
    copy_row(src, count, static_cast<std::uint16_t*>(data) + offset);
  }
}

inline void fill(float* p, std::int64_t count, float value) {
  for (std::int64_t i = 0; i < count; ++i) {
    p[i] = value;
  }
}

inline std::int64_t element_of(const RowLayout& layout, std::int64_t row, std::int64_t head_stride,
                               std::int64_t query_stride) {
  return row % layout.heads_per_unit * head_stride + row / layout.heads_per_unit * query_stride;
}

// Words of a tile's row along the head dimension: a multiple of every instruction set's lanes.
template <class Word>
constexpr std::int64_t row_words(std::int64_t head_dim) {
  return (num_words<Word>(head_dim) + 15) / 16 * 16;
}

// The row of words along the head dimension from element `offset` of data; what is absent is 0.
template <class Word>
inline void load_words(const void* data, DType dtype, std::int64_t offset, std::int64_t head_dim,
                       float* dst) {
  if constexpr (Word::kNumbers == 1) {
    load_row(data, dtype, offset, head_dim, dst);
    fill(dst + head_dim, row_words<Word>(head_dim) - head_dim, 0.0F);
  } else {
    fill(dst + head_dim / 2, row_words<Word>(head_dim) - head_dim / 2, 0.0F);
    __builtin_memcpy(dst, static_cast<const std::uint16_t*>(data) + offset,
                     static_cast<std::size_t>(head_dim) * sizeof(std::uint16_t));
  }
}

// Rows first_row.. of a unit as [kTileRows][row_words]; rows that are absent are 0.
template <class Word>
inline void load_tile(const UnitRows& from, const RowLayout& layout, std::int64_t first_row,
                      std::int64_t num_rows, std::int64_t head_dim, float* tile) {
  const std::int64_t width = row_words<Word>(head_dim);
  for (std::int64_t r = 0; r < num_rows; ++r) {
    load_words<Word>(from.data, from.dtype,
                     element_of(layout, first_row + r, from.head_stride, from.query_stride),
                     head_dim, tile + r * width);
  }
  fill(tile + num_rows * width, (kTileRows - num_rows) * width, 0.0F);
}

inline void store_tile(const float* tile, const RowLayout& layout, std::int64_t first_row,
                       std::int64_t num_rows, std::int64_t head_dim, const MutableUnitRows& to) {
  for (std::int64_t r = 0; r < num_rows; ++r) {
    store_row(tile + r * padded_head_dim(head_dim), head_dim, to.data, to.dtype,
              element_of(layout, first_row + r, to.head_stride, to.query_stride));
  }
}

// [num_rows][num_columns] to [num_columns][num_rows], both multiples of the lanes.
inline void transpose(const float* src, std::int64_t num_rows, std::int64_t num_columns,
                      float* dst) {
  const std::int64_t lanes = kFloatLanes;
  for (std::int64_t r = 0; r < num_rows; r += lanes) {
    for (std::int64_t c = 0; c < num_columns; c += lanes) {
      transpose_square(src + r * num_columns + c, num_columns, dst + c * num_rows + r, num_rows);
    }
  }
}

// Words (x[i], y[i]) of two rows of bfloat16.
inline void interleave(const std::uint16_t* x, const std::uint16_t* y, std::int64_t count,
                       float* words) {
  std::int64_t d = 0;
  for (; d + kFloatLanes <= count; d += kFloatLanes) {
    const VecU low = (VecU)load_bfloat16(x + d) >> 16U;
    store(words + d, (VecF)(low | (VecU)load_bfloat16(y + d)));
  }
  for (; d < count; ++d) {
    const std::uint32_t word = std::uint32_t{x[d]} | std::uint32_t{y[d]} << 16U;
    __builtin_memcpy(words + d, &word, sizeof(word));
  }
}

// A tile [kTileRows][row_words] as words along the rows: [words of kTileRows][padded head_dim].
// With float words that is the tile itself.
template <class Word>
inline const float* words_along_rows(const float* tile, std::int64_t head_dim, float* scratch) {
  if constexpr (Word::kNumbers == 1) {
    return tile;
  } else {
    const std::int64_t width = row_words<Word>(head_dim);
    const std::int64_t padded = padded_head_dim(head_dim);
    for (std::int64_t r = 0; r < kTileRows / 2; ++r) {
      const auto* row = reinterpret_cast<const std::uint16_t*>(tile + 2 * r * width);
      interleave(row, row + 2 * width, padded, scratch + r * padded);
    }
    return scratch;
  }
}

// A run of keys of a head as rows of words.
struct Panel {
  const float* row;
  std::int64_t stride;
};

inline std::int64_t panel_floats(std::int64_t head_dim) {
  return kTileKeys * (padded_head_dim(head_dim) + 16);
}

// Words along the head dimension, a row for each key: where the keys are if they lie densely there,
// else in scratch. Rows that are far apart would share few sets of the level-1 cache.
template <class Word>
inline Panel dimension_panel(const HeadRows& rows, std::int64_t begin, std::int64_t end,
                             std::int64_t head_dim, float* scratch) {
  if (rows.dtype == DType::kFloat32 && rows.stride == head_dim) {
    return {static_cast<const float*>(rows.data) + begin * rows.stride, rows.stride};
  }
  const std::int64_t stride = row_words<Word>(head_dim) + 16;
  for (std::int64_t n = begin; n < end; ++n) {
    load_words<Word>(rows.data, rows.dtype, n * rows.stride, head_dim,
                     scratch + (n - begin) * stride);
  }
  return {scratch, stride};
}

// Words along the keys, a row for each word.
template <class Word>
inline Panel key_panel(const HeadRows& rows, std::int64_t begin, std::int64_t end,
                       std::int64_t head_dim, float* scratch) {
  if constexpr (Word::kNumbers == 1) {
    return dimension_panel<Word>(rows, begin, end, head_dim, scratch);
  } else {
    const std::uint16_t zeros[kMaxHeadDim] = {};
    const auto* data = static_cast<const std::uint16_t*>(rows.data);
    const std::int64_t stride = padded_head_dim(head_dim) + 16;
    for (std::int64_t n = begin; n < end; n += 2) {
      interleave(data + n * rows.stride, n + 1 < end ? data + (n + 1) * rows.stride : zeros,
                 head_dim, scratch + (n - begin) / 2 * stride);
    }
    return {scratch, stride};
  }
}

// The panel from its key `skipped` on, which a word along the keys begins with.
inline Panel from_key(const Panel& panel, std::int64_t skipped) {
  return {panel.row + skipped * panel.stride, panel.stride};
}

// `part` of a block, begun at a key with which a word of the block's panels begins.
template <class Word>
inline KeyBlock begun_at_word(const KeyBlock& part, const KeyBlock& block) {
  KeyBlock aligned = part;
  aligned.begin -= (part.begin - block.begin) % Word::kNumbers;
  return aligned;
}

// A tile of rows and what each of them sees.
struct TileRows {
  std::int64_t first_row;
  std::int64_t num_rows;
  std::int64_t num_vectors;
  TileKeys keys;
  // One entry a row; rows that are absent see what the last one sees.
  std::int32_t prefix_end[kTileRows];
  std::int32_t begin[kTileRows];
  std::int32_t end[kTileRows];
};

inline TileRows tile_rows(const AttentionUnit& unit, std::int64_t tile) {
  TileRows rows;
  rows.first_row = tile * kTileRows;
  rows.num_rows = smaller(unit.rows.num_rows - rows.first_row, kTileRows);
  const std::int64_t lanes = kFloatLanes;
  rows.num_vectors = (rows.num_rows + lanes - 1) / lanes;
  VisibleKeys first{};
  VisibleKeys seen{};
  std::int64_t known = -1;
  for (std::int64_t r = 0; r < kTileRows; ++r) {
    const std::int64_t query = (rows.first_row + r) / unit.rows.heads_per_unit;
    if (r < rows.num_rows && query != known) {
      seen = unit.seen_by(query);
      known = query;
    }
    first = r == 0 ? seen : first;
    rows.prefix_end[r] = static_cast<std::int32_t>(seen.prefix_end);
    rows.begin[r] = static_cast<std::int32_t>(seen.begin);
    rows.end[r] = static_cast<std::int32_t>(seen.end);
  }
  rows.keys = tile_keys(first, seen);
  return rows;
}

// Which keys of `part` (of the tile's own seen_part) each row and vector sees.
struct BlockMask {
  bool is_needed;
  std::int32_t first_key;     // part's
  const std::int32_t* begin;  // of each row; null: 0
  const std::int32_t* end;
  Limits limits;
};

inline BlockMask block_mask(const TileRows& rows, const KeyBlock& part) {
  BlockMask mask;
  mask.is_needed = !is_seen_by_all(part, rows.keys);
  mask.first_key = static_cast<std::int32_t>(part.begin);
  mask.begin = part.is_prefix ? nullptr : rows.begin;
  mask.end = part.is_prefix ? rows.prefix_end : rows.end;
  for (std::int64_t v = 0; v < kTileVectors; ++v) {
    // Of its rows the last sees furthest.
    mask.limits.of[v] = mask.is_needed ? seen_keys(mask.end[(v + 1) * kFloatLanes - 1], part)
                                       : part.end - part.begin;
  }
  return mask;
}

// x where the rows of vector v see key n of the part, else `other`.
inline VecF where_seen(const BlockMask& mask, std::int64_t v, std::int64_t n, VecF x, VecF other) {
  const VecI key = set1(static_cast<std::int32_t>(mask.first_key + n));
  const std::int64_t lane = v * kFloatLanes;
  const VecF kept = key < load(mask.end + lane) ? x : other;
  return mask.begin == nullptr ? kept : (key >= load(mask.begin + lane) ? kept : other);
}

}  // namespace
}  // namespace paperlab::kernels::PAPERLAB_ISA
