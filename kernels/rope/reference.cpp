// The definition, pair by pair in float64.

#include "kernels/common/number.h"
#include "kernels/rope/rope.h"

namespace paperlab::kernels {
namespace {

// Head h at position t of row b: x at `from`, out at `to`, the tables at `table`.
void rotate_head(const Rope& problem, void* out, std::int64_t from, std::int64_t to,
                 std::int64_t table) {
  const DType dtype = problem.x.dtype;
  const DType table_dtype = statistics_dtype(dtype);
  const std::int64_t half = problem.half;
  for (std::int64_t i = 0; i < half; ++i) {
    const double c = load_number(problem.cos, table_dtype, table + i);
    const double sin = load_number(problem.sin, table_dtype, table + i);
    const double s = problem.inverse ? -sin : sin;
    const double low = load_number(problem.x.data, dtype, from + i);
    const double high = load_number(problem.x.data, dtype, from + half + i);
    store_number(out, dtype, to + i, low * c - high * s);
    store_number(out, dtype, to + half + i, high * c + low * s);
  }
  for (std::int64_t i = 2 * half; i < problem.x.size[3]; ++i) {
    store_number(out, dtype, to + i, load_number(problem.x.data, dtype, from + i));
  }
}

}  // namespace

void rope_reference(const Rope& problem, void* out) {
  const auto& [batch, length, heads, width] = problem.x.size;
  const auto& stride = problem.x.stride;
  for (std::int64_t b = 0; b < batch; ++b) {
    for (std::int64_t t = 0; t < length; ++t) {
      const std::int64_t table = problem.table_batch == 1 ? t : b * length + t;
      for (std::int64_t h = 0; h < heads; ++h) {
        rotate_head(problem, out, b * stride[0] + t * stride[1] + h * stride[2],
                    ((b * length + t) * heads + h) * width, table * problem.half);
      }
    }
  }
}

}  // namespace paperlab::kernels
