#include "kernels/rope/rope.h"

#include <algorithm>
#include <string>

#include "kernels/common/cpu_dtype.h"
#include "kernels/common/dispatch.h"
#include "kernels/rope/cpu.h"
#include "kernels/rope/tile.h"
#include "paperlab/core/error.h"

namespace paperlab::kernels {
namespace {

RopeCpu cpu() { return select_isa(generic::rope_cpu, avx2::rope_cpu, avx512::rope_cpu)(); }

}  // namespace

// The message is made only where it is needed: it takes longer than a decoding step's rotation.
void check_rope(const Rope& problem) {
  const auto& [batch, length, heads, width] = problem.x.size;
  if (std::min({batch, length, heads, width}) < 0 || problem.x.stride[3] != 1) {
    throw ShapeError("rope: x must be [B, T, H, D] with contiguous heads, got [" +
                     std::to_string(batch) + ", " + std::to_string(length) + ", " +
                     std::to_string(heads) + ", " + std::to_string(width) + "], last stride " +
                     std::to_string(problem.x.stride[3]));
  }
  if (problem.half < 0 || problem.half > width / 2) {
    throw ShapeError("rope: half must be in 0..D/2, got " + std::to_string(problem.half));
  }
  if (problem.table_batch != 1 && problem.table_batch != batch) {
    throw ShapeError("rope: table_batch must be 1 or B, got " +
                     std::to_string(problem.table_batch));
  }
}

void rope(const Rope& problem, void* out, const Executor& executor) {
  check_rope(problem);
  require_cpu_dtype(problem.x.dtype, "rope");
  if (problem.x.dtype == DType::kFloat64) {
    rope_reference(problem, out);
    return;
  }
  const RopeCpu kernel = cpu();
  const std::int64_t positions = problem.x.size[0] * problem.x.size[1];
  const std::int64_t of_task = positions_of_task(problem.x.size[2] * problem.x.size[3]);
  if (positions <= of_task) {  // a decoding step wakes no thread
    kernel.rotate(problem, out, 0, positions);
    return;
  }
  parallel_for(executor, (positions + of_task - 1) / of_task, [&](std::int64_t task, int) {
    kernel.rotate(problem, out, task * of_task, std::min(positions, (task + 1) * of_task));
  });
}

}  // namespace paperlab::kernels
