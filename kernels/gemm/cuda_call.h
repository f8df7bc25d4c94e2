#pragma once
// A product of row-major operands in cuBLASLt's terms, which are column-major, and what is left for
// a pass of our own (block.h). Pure functions, so that tests can execute the described call.
//
// Row-major C [M, N] is column-major C^T [N, M]: C^T = B A^T, so that our B is the library's A.

#include <array>
#include <cstdint>

#include "kernels/common/cuda/gemm_function.h"

namespace paperlab::kernels {

// Element (row, column) lies at data[row + column * ld].
struct ColumnMajor {
  const void* data = nullptr;
  DType dtype = DType::kFloat32;
  std::int64_t rows = 0;
  std::int64_t columns = 0;
  std::int64_t ld = 0;
};

// D = f(op(A) op(B) + beta C + bias of each row), f the identity or GELU in its tanh form.
struct LtCall {
  ColumnMajor a;
  ColumnMajor b;
  bool is_a_transposed = false;
  bool is_b_transposed = false;
  ColumnMajor c;  // D where beta is 0
  ColumnMajor d;
  bool has_beta = false;       // 1, else 0
  const void* bias = nullptr;  // [rows of D], of its dtype
  bool has_gelu = false;
};

// Who does what of an epilogue.
struct GemmPlan {
  bool bias_in_call = false;
  bool gelu_in_call = false;
  bool residual_in_call = false;
  bool bias_after = false;
  bool gelu_after = false;
  bool gate_after = false;
  bool residual_after = false;

  constexpr bool has_pass() const {
    return bias_after || gelu_after || gate_after || residual_after;
  }
};

inline bool is_aligned(const void* data, std::uintptr_t bytes) {
  return reinterpret_cast<std::uintptr_t>(data) % bytes == 0;
}

// The library's epilogues are for results of the operands' dtype up to 32 bits and need an aligned
// bias; may_fuse = false leaves them to the pass. Its GELU is the tanh form by the GPU's own tanh,
// right to 2^-11 (PTX ISA, tanh.approx.f32): for results of 16 bits, whose rounding is as large. A
// residual comes through beta if nothing but a
// sum stands between it and the product. Without terms (K = 0) there is no call.
inline GemmPlan plan_of(const Gemm& problem, const GemmEpilogue& epilogue, bool may_fuse = true) {
  const bool has_call = problem.k > 0;
  const bool has_bias = problem.bias != nullptr;
  const bool has_gelu = epilogue.activation == Activation::kGeluTanh;
  const bool has_gate = epilogue.gate != nullptr;
  const bool has_residual = epilogue.residual != nullptr;
  const bool fuses = may_fuse && has_call && problem.dtype != DType::kFloat64 && !epilogue.is_wide;
  GemmPlan plan;
  plan.bias_in_call = has_bias && fuses && is_aligned(problem.bias, 16);
  const bool is_short = problem.dtype == DType::kBFloat16 || problem.dtype == DType::kFloat16;
  plan.gelu_in_call = has_gelu && fuses && is_short && (!has_bias || plan.bias_in_call);
  plan.residual_in_call = has_residual && has_call && !has_gelu && !has_gate;
  plan.bias_after = has_bias && !plan.bias_in_call;
  plan.gelu_after = has_gelu && !plan.gelu_in_call;
  plan.gate_after = has_gate;
  plan.residual_after = has_residual && !plan.residual_in_call;
  return plan;
}

// Whether an operand of `rows` rows and `k` terms is read as rows of contiguous terms: where both
// strides are 1, the other one must hold no overlapping lines.
constexpr bool has_contiguous_terms(const GemmOperand& operand, std::int64_t rows, std::int64_t k) {
  return operand.k_stride == 1 && (rows <= 1 || operand.row_stride >= k);
}
constexpr bool has_contiguous_rows(const GemmOperand& operand, std::int64_t rows, std::int64_t k) {
  return operand.row_stride == 1 && (k <= 1 || operand.k_stride >= rows);
}

// The stride of lines of `count` elements; of a single line any number will do.
constexpr std::int64_t leading_size(std::int64_t stride, std::int64_t lines, std::int64_t count) {
  return lines > 1 || stride >= count ? stride : count;
}

// [K, rows] if terms are contiguous, else [rows, K].
constexpr ColumnMajor layout_of(const GemmOperand& operand, std::int64_t rows, std::int64_t k,
                                DType dtype) {
  if (has_contiguous_terms(operand, rows, k)) {
    return {operand.data, dtype, k, rows, leading_size(operand.row_stride, rows, k)};
  }
  return {operand.data, dtype, rows, k, leading_size(operand.k_stride, k, rows)};
}

// [N, M] of row-major [M, N].
constexpr ColumnMajor layout_of_result(const void* data, std::int64_t m, std::int64_t n,
                                       std::int64_t stride, DType dtype) {
  return {data, dtype, n, m, leading_size(stride, m, n)};
}

// The call of a plan; M, N and K >= 1.
constexpr LtCall call_of(const Gemm& problem, const GemmEpilogue& epilogue, const GemmPlan& plan) {
  const auto& [dtype, m, n, k, a, b, bias, c, c_stride] = problem;
  const DType dtype_of_c = epilogue.dtype_of_c(dtype);
  LtCall call;
  call.a = layout_of(b, n, k, dtype);
  call.is_a_transposed = has_contiguous_terms(b, n, k);
  call.b = layout_of(a, m, k, dtype);
  call.is_b_transposed = !has_contiguous_terms(a, m, k);
  call.d = layout_of_result(c, m, n, c_stride, dtype_of_c);
  call.has_beta = plan.residual_in_call;
  call.c = plan.residual_in_call
               ? layout_of_result(epilogue.residual, m, n, epilogue.residual_stride, dtype_of_c)
               : call.d;
  call.bias = plan.bias_in_call ? bias : nullptr;
  call.has_gelu = plan.gelu_in_call;
  return call;
}

// Bytes up to 16 that an address is a multiple of: what the choice of an algorithm may rely on.
inline std::int64_t alignment_of(const void* data) {
  const auto address = reinterpret_cast<std::uintptr_t>(data);
  const auto lowest = static_cast<std::int64_t>(address & (~address + 1));
  return address == 0 || lowest > 16 ? 16 : lowest;
}

// All that the choice of an algorithm depends on.
using LtKey = std::array<std::int64_t, 24>;
inline LtKey key_of(const LtCall& call, int device, std::int64_t workspace) {
  const auto flag = [](bool is_set) { return std::int64_t{is_set ? 1 : 0}; };
  return {device,
          workspace,
          static_cast<std::int64_t>(call.a.dtype),
          static_cast<std::int64_t>(call.d.dtype),
          call.a.rows,
          call.a.columns,
          call.a.ld,
          call.b.rows,
          call.b.columns,
          call.b.ld,
          call.d.rows,
          call.d.columns,
          call.d.ld,
          call.c.ld,
          flag(call.is_a_transposed),
          flag(call.is_b_transposed),
          flag(call.has_beta),
          flag(call.has_gelu),
          flag(call.bias != nullptr),
          alignment_of(call.a.data),
          alignment_of(call.b.data),
          alignment_of(call.c.data),
          alignment_of(call.d.data),
          flag(call.c.data == call.d.data)};
}

// Room for 16 partial sums of every element of C, at least 1 MiB and at most the 32 MiB that
// cuBLAS takes for itself on such GPUs.
constexpr std::int64_t lt_workspace(std::int64_t m, std::int64_t n) {
  constexpr std::int64_t kLeast = std::int64_t{1} << 20;
  constexpr std::int64_t kMost = std::int64_t{1} << 25;
  const std::int64_t sums = m < kMost / 64 && n < kMost / 64 ? 64 * m * n : kMost;
  return sums < kLeast ? kLeast : sums < kMost ? (sums + 255) / 256 * 256 : kMost;
}

}  // namespace paperlab::kernels
