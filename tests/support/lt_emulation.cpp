#include "tests/support/lt_emulation.h"

#include <cmath>
#include <string>

#include "kernels/common/number.h"
#include "kernels/gemm/block.h"
#include "paperlab/core/error.h"

namespace paperlab::test {

using namespace kernels;  // NOLINT(google-build-using-namespace): the subject of this file

namespace {

void check(const ColumnMajor& matrix) {
  require<ValueError>(matrix.rows >= 1 && matrix.columns >= 1 && matrix.ld >= matrix.rows,
                      "execute_lt", "a layout must have rows, columns and ld >= rows",
                      std::to_string(matrix.rows) + ", " + std::to_string(matrix.columns) + ", " +
                          std::to_string(matrix.ld));
}

double element(const ColumnMajor& matrix, bool is_transposed, std::int64_t row,
               std::int64_t column) {
  const std::int64_t at = is_transposed ? column + row * matrix.ld : row + column * matrix.ld;
  return load_number(matrix.data, matrix.dtype, at);
}

// GELU as the library has it: with the GPU's own tanh, which is off by up to 2^-11 of itself.
double coarse_gelu(double x) {
  const double inner = 0.79788456080286535588 * (x + 0.044715 * x * x * x);
  return 0.5 * x * (1.0 + std::tanh(inner) * (1.0 - 0x1p-11));
}

}  // namespace

void execute_lt(const LtCall& call) {
  for (const ColumnMajor& matrix : {call.a, call.b, call.c, call.d}) {
    check(matrix);
  }
  const std::int64_t k = call.is_a_transposed ? call.a.rows : call.a.columns;
  const std::int64_t rows = call.is_a_transposed ? call.a.columns : call.a.rows;
  const std::int64_t columns = call.is_b_transposed ? call.b.rows : call.b.columns;
  const bool fits = k == (call.is_b_transposed ? call.b.columns : call.b.rows) &&
                    rows == call.d.rows && columns == call.d.columns && rows == call.c.rows &&
                    columns == call.c.columns && call.c.dtype == call.d.dtype;
  require<ValueError>(fits, "execute_lt", "op(A) op(B) must be as C and D", "other sizes");
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t column = 0; column < columns; ++column) {
      double x = call.has_beta ? element(call.c, false, row, column) : 0.0;
      for (std::int64_t i = 0; i < k; ++i) {
        x += element(call.a, call.is_a_transposed, row, i) *
             element(call.b, call.is_b_transposed, i, column);
      }
      x += call.bias == nullptr ? 0.0 : load_number(call.bias, call.d.dtype, row);
      store_number(const_cast<void*>(call.d.data), call.d.dtype, row + column * call.d.ld,
                   call.has_gelu ? coarse_gelu(x) : x);
    }
  }
}

void emulate_gemm(const Gemm& problem, const GemmEpilogue& epilogue, bool is_reversed,
                  bool may_fuse) {
  struct NoRegisters {};
  check_gemm_cuda(problem, epilogue);
  if (problem.m == 0 || problem.n == 0) {
    return;
  }
  const GemmPlan plan = plan_of(problem, epilogue, may_fuse);
  if (problem.k > 0) {
    execute_lt(call_of(problem, epilogue, plan));
  }
  if (problem.k > 0 && !plan.has_pass()) {
    return;
  }
  FinishPass pass = finish_pass(problem, epilogue, plan);
  with_finish_types(problem.dtype, epilogue.is_wide, [&](auto of_c, auto of_bias) {
    using T = typename decltype(of_c)::Type;
    using B = typename decltype(of_bias)::Type;
    pass.is_whole = has_whole_packs<T>(pass);
    HostTeam<NoRegisters> team(kFinishThreads, is_reversed);
    for (std::int64_t block = 0; block < finish_blocks<T>(pass.m, pass.n); ++block) {
      finish_block<T, B>(team, pass, block);
    }
  });
}

GemmCuda emulated_gemm() {
  return {gemm_cuda_workspace, [](const Gemm& problem, const GemmEpilogue& epilogue, void*,
                                  const Context&) { emulate_gemm(problem, epilogue); }};
}

}  // namespace paperlab::test
