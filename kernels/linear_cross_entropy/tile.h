#pragma once
// How logits are cut into chunks: functions of shapes alone.

#include <cstdint>

#include "paperlab/core/host_device.h"

namespace paperlab::kernels {

struct IndexRange {
  std::int64_t begin;
  std::int64_t end;
  PAPERLAB_HD constexpr std::int64_t size() const { return end - begin; }
  bool operator==(const IndexRange&) const = default;
};

PAPERLAB_HD constexpr std::int64_t num_ranges(std::int64_t count, std::int64_t size) {
  return (count + size - 1) / size;
}
// Range `index` of ranges of `size` of 0..count-1; the last may be short.
PAPERLAB_HD constexpr IndexRange range_at(std::int64_t count, std::int64_t size,
                                          std::int64_t index) {
  const std::int64_t end = (index + 1) * size;
  return {index * size, end < count ? end : count};
}

// Of a chunk, in logits: the last-level cache holds it beside the operands of its products.
constexpr std::int64_t kChunkElements = std::int64_t{1} << 21;
constexpr std::int64_t kChunkRows = 4096;
// Each chunk of columns reads x and adds to its gradient once more.
constexpr std::int64_t kLeastChunkColumns = 1024;

// [rows, columns] of a chunk.
struct ChunkShape {
  std::int64_t rows;
  std::int64_t columns;
  bool operator==(const ChunkShape&) const = default;
};

// The size of nearly equal parts of at most `most` >= unit, a multiple of `unit` where there are
// several.
PAPERLAB_HD constexpr std::int64_t even_size(std::int64_t count, std::int64_t most,
                                             std::int64_t unit) {
  if (count <= most) {
    return count;
  }
  const std::int64_t parts = num_ranges(count, most / unit * unit);
  return num_ranges(num_ranges(count, parts), unit) * unit;
}

// For N, V >= 1. Few rows get more columns, as long as the columns' weights stay in the cache too.
PAPERLAB_HD constexpr ChunkShape chunk_shape(std::int64_t num_rows, std::int64_t width,
                                             std::int64_t vocab_size) {
  const std::int64_t line = num_rows > width ? num_rows : width;
  const std::int64_t many = kChunkElements / line;
  const std::int64_t columns =
      even_size(vocab_size, many > kLeastChunkColumns ? many : kLeastChunkColumns, 64);
  const std::int64_t rows = kChunkElements / columns;
  return {even_size(num_rows, rows < kChunkRows ? rows : kChunkRows, 16), columns};
}

// Rows of a chunk, or columns, of a task: some 32768 logits, ten microseconds of work.
PAPERLAB_HD constexpr std::int64_t rows_of_task(std::int64_t columns) {
  return columns >= 32768 ? 1 : 32768 / columns;
}
constexpr std::int64_t kTaskColumns = 64;

}  // namespace paperlab::kernels
