#pragma once
// What the forward and the backward pass on the host share.

#include "kernels/common/dispatch.h"
#include "kernels/common/lines.h"
#include "kernels/depth_aggregate/check.h"
#include "kernels/depth_aggregate/cpu.h"
#include "kernels/depth_aggregate/depth_aggregate.h"
#include "kernels/depth_aggregate/tile.h"

namespace paperlab::kernels {

inline DepthAggregateCpu depth_aggregate_cpu() {
  return select_isa(generic::depth_aggregate_cpu, avx2::depth_aggregate_cpu,
                    avx512::depth_aggregate_cpu)();
}

inline std::int64_t bytes_of(DType dtype) {
  return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2;
}

inline float* floats(const Lines& lines) { return reinterpret_cast<float*>(lines.get()); }

inline Lines take_floats(std::int64_t count) {
  return take_lines(count * static_cast<std::int64_t>(sizeof(float)));
}

constexpr std::int64_t kTaskElements = 32768;  // of elementwise passes, ten microseconds of work

// Calls body(block, worker) for blocks of `size` of 0..count-1.
template <class Body>
void for_blocks(const Executor& executor, std::int64_t count, std::int64_t size, Body body) {
  parallel_for(executor, num_blocks(count, size),
               [&](std::int64_t task, int worker) { body(block_at(count, size, task), worker); });
}

// A matrix [rows, columns] of `dtype` as the kernels read it: float32, rows of padded(columns).
inline Lines packed_rows(const void* from, DType dtype, std::int64_t rows, std::int64_t columns,
                         const DepthAggregateCpu& kernel, const Executor& executor) {
  Lines lines = take_floats(rows * padded(columns));
  for_blocks(executor, rows, 1 + kTaskElements / (columns + 1),
             [&](TokenRange part, int /*worker*/) {
               kernel.pack(from, dtype, columns, part, floats(lines));
             });
  return lines;
}

// The same turned over: rows of padded(rows).
inline Lines packed_columns(const void* from, DType dtype, std::int64_t rows, std::int64_t columns,
                            const DepthAggregateCpu& kernel, const Executor& executor) {
  Lines lines = take_floats(columns * padded(rows));
  const std::int64_t size = num_blocks(1 + kTaskElements / (rows + 1), 16) * 16;
  for_blocks(executor, columns, size, [&](TokenRange range, int /*worker*/) {
    kernel.pack_transposed(from, dtype, rows, columns, range, floats(lines));
  });
  return lines;
}

// The parameter [in, out], which lies so or turned over, with rows of `out`, or of `in`.
inline Lines packed_in_out(const void* from, const ConnectionWeights& problem, std::int64_t in,
                           std::int64_t out, const DepthAggregateCpu& kernel,
                           const Executor& executor) {
  return problem.is_transposed ? packed_columns(from, problem.dtype, out, in, kernel, executor)
                               : packed_rows(from, problem.dtype, in, out, kernel, executor);
}
inline Lines packed_out_in(const void* from, const ConnectionWeights& problem, std::int64_t in,
                           std::int64_t out, const DepthAggregateCpu& kernel,
                           const Executor& executor) {
  return problem.is_transposed ? packed_rows(from, problem.dtype, out, in, kernel, executor)
                               : packed_columns(from, problem.dtype, in, out, kernel, executor);
}

}  // namespace paperlab::kernels
