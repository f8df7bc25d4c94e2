#include "kernels/rms_norm/rms_norm.h"

#include <string>
#include <vector>

#include "kernels/common/cpu_dtype.h"
#include "kernels/common/dispatch.h"
#include "kernels/rms_norm/cpu.h"
#include "kernels/rms_norm/tile.h"
#include "paperlab/core/error.h"

namespace paperlab::kernels {
namespace {

RmsNormCpu cpu() {
  return select_isa(generic::rms_norm_cpu, avx2::rms_norm_cpu, avx512::rms_norm_cpu)();
}

void check(std::int64_t num_rows, std::int64_t width, bool is_whole) {
  require<ShapeError>(num_rows >= 0 && width >= 1, "rms_norm", "x must be [N, W] with W >= 1",
                      "[" + std::to_string(num_rows) + ", " + std::to_string(width) + "]");
  require<ValueError>(is_whole, "rms_norm", "sum must be given with residual, and only then",
                      "one of them");
}

}  // namespace

void check_rms_norm(const RmsNormForward& problem) {
  check(problem.num_rows, problem.width, (problem.residual == nullptr) == (problem.sum == nullptr));
}

void check_rms_norm_backward(const RmsNormBackward& problem) {
  check(problem.num_rows, problem.width, true);
}

void rms_norm(const RmsNormForward& problem, const Executor& executor) {
  check_rms_norm(problem);
  require_cpu_dtype(problem.dtype, "rms_norm");
  if (problem.dtype == DType::kFloat64) {
    rms_norm_reference(problem);
    return;
  }
  const RmsNormCpu kernel = cpu();
  const std::int64_t rows = forward_rows(problem.width);
  parallel_for(executor, num_runs(problem.num_rows, rows), [&](std::int64_t run, int) {
    const RowRun range = run_at(run, problem.num_rows, rows);
    kernel.forward(problem, range.begin, range.end);
  });
}

void rms_norm_backward(const RmsNormBackward& problem, const Executor& executor) {
  check_rms_norm_backward(problem);
  require_cpu_dtype(problem.dtype, "rms_norm_backward");
  if (problem.dtype == DType::kFloat64) {
    rms_norm_backward_reference(problem);
    return;
  }
  const RmsNormCpu kernel = cpu();
  const std::int64_t rows = backward_rows(problem.num_rows);
  const std::int64_t num_parts = num_runs(problem.num_rows, rows);
  std::vector<float> parts(static_cast<std::size_t>(num_parts * problem.width));
  parallel_for(executor, num_parts, [&](std::int64_t run, int) {
    const RowRun range = run_at(run, problem.num_rows, rows);
    kernel.backward(problem, range.begin, range.end, parts.data() + run * problem.width);
  });
  kernel.add_parts(problem, parts.data(), num_parts);
}

}  // namespace paperlab::kernels
