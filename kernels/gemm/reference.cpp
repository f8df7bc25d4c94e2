// The definition, one element at a time in float64.

#include "kernels/common/number.h"
#include "kernels/gemm/gemm.h"

namespace paperlab::kernels {

void gemm_reference(const Gemm& problem) {
  const auto& [dtype, num_rows, num_columns, num_terms, a, b, bias, c, c_stride] = problem;
  for (std::int64_t m = 0; m < num_rows; ++m) {
    for (std::int64_t n = 0; n < num_columns; ++n) {
      double sum = 0.0;
      for (std::int64_t k = 0; k < num_terms; ++k) {
        sum += load_number(a.data, dtype, m * a.row_stride + k * a.k_stride) *
               load_number(b.data, dtype, n * b.row_stride + k * b.k_stride);
      }
      const double of_bias = bias == nullptr ? 0.0 : load_number(bias, dtype, n);
      store_number(c, dtype, m * c_stride + n, sum + of_bias);
    }
  }
}

}  // namespace paperlab::kernels
