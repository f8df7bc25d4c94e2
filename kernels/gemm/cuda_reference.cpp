// What the product on a GPU has without one: checks of arguments, and the definition.

#include <cmath>
#include <string>

#include "kernels/common/number.h"
#include "kernels/gemm/block.h"
#include "kernels/gemm/cuda.h"
#include "kernels/gemm/cuda_call.h"
#include "paperlab/core/error.h"

namespace paperlab::kernels {
namespace {

constexpr char kFunction[] = "gemm_cuda";

void check_operand(const GemmOperand& operand, std::int64_t rows, std::int64_t k,
                   const char* name) {
  const std::string strides =
      std::to_string(operand.row_stride) + " and " + std::to_string(operand.k_stride);
  require<ValueError>(operand.row_stride == 1 || operand.k_stride == 1, kFunction,
                      "a stride of A and B must be 1", strides);
  require<ValueError>(
      has_contiguous_terms(operand, rows, k) || has_contiguous_rows(operand, rows, k), kFunction,
      std::string("rows of ") + name + " must not overlap", "strides " + strides);
}

void check_rows(std::int64_t m, std::int64_t n, std::int64_t stride, const char* name) {
  require<ValueError>(m <= 1 || stride >= n, kFunction,
                      std::string("rows of ") + name + " must not overlap",
                      "a stride of " + std::to_string(stride) + " for N " + std::to_string(n));
}

}  // namespace

std::int64_t gemm_cuda_workspace(const Gemm& problem) { return lt_workspace(problem.m, problem.n); }

void check_gemm_cuda(const Gemm& problem, const GemmEpilogue& epilogue) {
  const auto& [dtype, m, n, k, a, b, bias, c, c_stride] = problem;
  require<ShapeError>(m >= 0 && n >= 0 && k >= 0, kFunction, "M, N and K must be >= 0",
                      std::to_string(m) + ", " + std::to_string(n) + ", " + std::to_string(k));
  check_operand(a, m, k, "A");
  check_operand(b, n, k, "B");
  check_rows(m, n, c_stride, "C");
  if (epilogue.gate != nullptr) {
    check_rows(m, n, epilogue.gate_stride, "gate");
  }
  if (epilogue.residual != nullptr) {
    check_rows(m, n, epilogue.residual_stride, "residual");
  }
  const bool is_in_place = epilogue.residual == c && c != nullptr;
  const bool is_sum = epilogue.activation == Activation::kNone && epilogue.gate == nullptr;
  require<ValueError>(!is_in_place || (is_sum && epilogue.residual_stride == c_stride), kFunction,
                      "a residual that is C must have its stride, no activation and no gate",
                      "another epilogue");
  require<DTypeError>(!epilogue.is_wide || dtype == DType::kBFloat16 || dtype == DType::kFloat16,
                      kFunction, "operands of a float32 result must be bfloat16 or float16",
                      "float32 or float64");
}

void gemm_epilogue_reference(const Gemm& problem, const GemmEpilogue& epilogue) {
  const auto& [dtype, num_rows, num_columns, num_terms, a, b, bias, c, c_stride] = problem;
  const DType dtype_of_c = epilogue.dtype_of_c(dtype);
  for (std::int64_t m = 0; m < num_rows; ++m) {
    for (std::int64_t n = 0; n < num_columns; ++n) {
      double x = bias == nullptr ? 0.0 : load_number(bias, dtype, n);
      for (std::int64_t k = 0; k < num_terms; ++k) {
        x += load_number(a.data, dtype, m * a.row_stride + k * a.k_stride) *
             load_number(b.data, dtype, n * b.row_stride + k * b.k_stride);
      }
      x = epilogue.activation == Activation::kGeluTanh ? tanh_gelu(x) : x;
      if (epilogue.gate != nullptr) {
        x *= load_number(epilogue.gate, dtype_of_c, m * epilogue.gate_stride + n);
      }
      if (epilogue.residual != nullptr) {
        x += load_number(epilogue.residual, dtype_of_c, m * epilogue.residual_stride + n);
      }
      store_number(c, dtype_of_c, m * c_stride + n, x);
    }
  }
}

}  // namespace paperlab::kernels
