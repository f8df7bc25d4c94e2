#pragma once
// How [N, F] elements are cut into tasks: functions of shapes alone.

#include <cstdint>

#include "paperlab/core/host_device.h"

namespace paperlab::kernels {

// Elements of a task: some ten microseconds of work.
constexpr std::int64_t kTaskElements = 16384;

struct RowPiece {
  std::int64_t begin;
  std::int64_t end;
};

// Long rows are cut, because a single token of a wide layer must keep all threads busy.
PAPERLAB_HD constexpr std::int64_t pieces_of_row(std::int64_t width) {
  return width <= kTaskElements ? 1 : (width + kTaskElements - 1) / kTaskElements;
}

PAPERLAB_HD constexpr RowPiece row_piece(std::int64_t piece, std::int64_t width) {
  const std::int64_t end = (piece + 1) * kTaskElements;
  return {piece * kTaskElements, end < width ? end : width};
}

PAPERLAB_HD constexpr std::int64_t rows_of_task(std::int64_t width) {
  return width <= 0 || width >= kTaskElements ? 1 : kTaskElements / width;
}

}  // namespace paperlab::kernels
