#pragma once
// How rows are cut into runs: functions of shapes alone.

#include <cstdint>

#include "paperlab/core/host_device.h"

namespace paperlab::kernels {

struct RowRun {
  std::int64_t begin;
  std::int64_t end;
};

// Rows of a forward task: some 32768 elements, ten microseconds of work.
PAPERLAB_HD constexpr std::int64_t forward_rows(std::int64_t width) {
  return width >= 32768 ? 1 : 32768 / width;
}

// Rows whose part of the weight's gradient is added up on its own: at most 64 parts, because each
// takes a row of memory; at least 16 rows.
PAPERLAB_HD constexpr std::int64_t backward_rows(std::int64_t num_rows) {
  const std::int64_t rows = (num_rows + 63) / 64;
  return rows < 16 ? 16 : rows;
}

PAPERLAB_HD constexpr std::int64_t num_runs(std::int64_t num_rows, std::int64_t rows) {
  return (num_rows + rows - 1) / rows;
}

PAPERLAB_HD constexpr RowRun run_at(std::int64_t run, std::int64_t num_rows, std::int64_t rows) {
  const std::int64_t end = (run + 1) * rows;
  return {run * rows, end < num_rows ? end : num_rows};
}

}  // namespace paperlab::kernels
