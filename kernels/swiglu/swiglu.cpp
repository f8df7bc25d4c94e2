#include "kernels/swiglu/swiglu.h"

#include <string>

#include "kernels/common/cpu_dtype.h"
#include "kernels/common/dispatch.h"
#include "kernels/swiglu/cpu.h"
#include "kernels/swiglu/tile.h"
#include "paperlab/core/error.h"

namespace paperlab::kernels {
namespace {

SwigluCpu cpu() { return select_isa(generic::swiglu_cpu, avx2::swiglu_cpu, avx512::swiglu_cpu)(); }

// Calls body(row, begin, end) for pieces of rows.
template <class F>
void for_each_piece(const Swiglu& problem, const Executor& executor, F body) {
  const std::int64_t pieces = pieces_of_row(problem.width);
  const std::int64_t rows = rows_of_task(problem.width);
  const std::int64_t runs = (problem.num_rows + rows - 1) / rows;
  parallel_for(executor, runs * pieces, [&](std::int64_t task, int) {
    const RowPiece piece = row_piece(task % pieces, problem.width);
    const std::int64_t first = task / pieces * rows;
    for (std::int64_t row = first; row < first + rows && row < problem.num_rows; ++row) {
      body(row, piece.begin, piece.end);
    }
  });
}

}  // namespace

void check_swiglu(const Swiglu& problem) {
  require<ShapeError>(
      problem.num_rows >= 0 && problem.width >= 0, "swiglu", "gate must be [N, F]",
      "[" + std::to_string(problem.num_rows) + ", " + std::to_string(problem.width) + "]");
}

void swiglu(const Swiglu& problem, const MutableRows& y, const Executor& executor) {
  check_swiglu(problem);
  require_cpu_dtype(problem.dtype, "swiglu");
  if (problem.dtype == DType::kFloat64) {
    swiglu_reference(problem, y);
    return;
  }
  const SwigluCpu kernel = cpu();
  for_each_piece(problem, executor, [&](std::int64_t row, std::int64_t begin, std::int64_t end) {
    kernel.forward(problem, y, row, begin, end);
  });
}

void swiglu_backward(const Swiglu& problem, const Rows& grad_y, const MutableRows& grad_gate,
                     const MutableRows& grad_up, const Executor& executor) {
  check_swiglu(problem);
  require_cpu_dtype(problem.dtype, "swiglu_backward");
  if (problem.dtype == DType::kFloat64) {
    swiglu_backward_reference(problem, grad_y, grad_gate, grad_up);
    return;
  }
  const SwigluCpu kernel = cpu();
  for_each_piece(problem, executor, [&](std::int64_t row, std::int64_t begin, std::int64_t end) {
    kernel.backward(problem, grad_y, grad_gate, grad_up, row, begin, end);
  });
}

}  // namespace paperlab::kernels
