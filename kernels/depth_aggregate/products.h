#pragma once
// The generator's products as tasks of block_product.h. Host.

#include "kernels/common/number.h"
#include "kernels/depth_aggregate/block_product.h"

namespace paperlab::kernels::depth {

// Tokens whose part of a parameter's gradient is one product: at most 16 of them, at least 512
// tokens each.
constexpr std::int64_t tokens_of_split(std::int64_t num_tokens) {
  const std::int64_t tokens = num_blocks(num_tokens, 16);
  return tokens < 512 ? 512 : num_blocks(tokens, kTileTerms) * kTileTerms;
}

// A matrix whose element (row, term) lies at [row row_stride + term term_stride].
inline ProductOperand operand(const void* data, DType dtype, std::int64_t row_stride,
                              std::int64_t term_stride) {
  const std::int64_t bytes = dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2;
  const std::int64_t other = term_stride == 1 ? row_stride : term_stride;
  const std::int64_t past = static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(data) %
                                                      static_cast<std::uintptr_t>(kQuad * bytes));
  return {data, dtype, row_stride, term_stride, other % kQuad == 0 && past == 0, bytes == 2};
}

// The parameter [in, out], which lies so or turned over; its rows are `out` (or `in`), its terms
// the other.
inline ProductOperand of_parameter(const ConnectionWeights& problem, const void* data,
                                   std::int64_t in, std::int64_t out, bool rows_are_out) {
  const std::int64_t in_stride = problem.is_transposed ? 1 : out;
  const std::int64_t out_stride = problem.is_transposed ? in : 1;
  return rows_are_out ? operand(data, problem.dtype, out_stride, in_stride)
                      : operand(data, problem.dtype, in_stride, out_stride);
}

// Still without operands; the result is of statistics' type.
inline ProductTask product_of(const ConnectionWeights& problem, ProductKind kind, std::int64_t rows,
                              std::int64_t columns, std::int64_t terms) {
  ProductTask task{};
  task.kind = kind;
  task.gelu = problem.gelu;
  task.dtype = problem.dtype;
  task.rows = rows;
  task.columns = columns;
  task.terms = terms;
  task.terms_of_split = num_blocks(terms + 1, kTileTerms) * kTileTerms;  // one split
  task.to_dtype = statistics_dtype(problem.dtype);
  return task;
}

}  // namespace paperlab::kernels::depth
