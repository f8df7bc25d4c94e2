// Compiled once for each instruction set. Lanes of a head lie in the vectors' lanes, so that pairs
// are two loads R/2 apart and nothing is shuffled.
#include "kernels/rope/cpu.h"

#include "kernels/common/vec_row.h"

namespace paperlab::kernels::PAPERLAB_ISA {
namespace {

// Lanes i.. of N vectors and their partners in all heads of one position: `count` lanes in a
// vector. The tables are read once for all heads.
template <int N, class T>
inline void rotate_lanes(const Rope& problem, const T* x, T* out, const float* cos,
                         const float* sin, std::int64_t count) {
  const std::int64_t half = problem.half;
  const float sign = problem.inverse ? -1.0F : 1.0F;
  VecF c[N];
  VecF s[N];
  for (int n = 0; n < N; ++n) {
    c[n] = load_row(cos + n * kFloatLanes, count);
    s[n] = load_row(sin + n * kFloatLanes, count) * sign;
  }
  for (std::int64_t h = 0; h < problem.x.size[2]; ++h) {
    const T* from = x + h * problem.x.stride[2];
    T* to = out + h * problem.x.size[3];
    for (int n = 0; n < N; ++n, from += kFloatLanes, to += kFloatLanes) {
      const VecF low = load_row(from, count);
      const VecF high = load_row(from + half, count);
      store_row(to, count, fma(low, c[n], -(high * s[n])));
      store_row(to + half, count, fma(high, c[n], low * s[n]));
    }
  }
}

// All heads of one position. Four vectors at a time are whole cache lines, which the prefetcher
// follows better.
template <class T>
void rotate_heads(const Rope& problem, const T* x, T* out, const float* cos, const float* sin) {
  const std::int64_t half = problem.half;
  std::int64_t i = 0;
  for (; i + 4 * kFloatLanes <= half; i += 4 * kFloatLanes) {
    rotate_lanes<4>(problem, x + i, out + i, cos + i, sin + i, kFloatLanes);
  }
  for_each_vector(half - i, [&](std::int64_t d, std::int64_t count) {
    rotate_lanes<1>(problem, x + i + d, out + i + d, cos + i + d, sin + i + d, count);
  });
  const std::int64_t width = problem.x.size[3];
  if (2 * half < width) {
    const auto rest = static_cast<std::size_t>(width - 2 * half) * sizeof(T);
    for (std::int64_t h = 0; h < problem.x.size[2]; ++h) {
      __builtin_memcpy(out + h * width + 2 * half, x + h * problem.x.stride[2] + 2 * half, rest);
    }
  }
}

template <class T>
void rotate_positions(const Rope& problem, void* out, std::int64_t begin, std::int64_t end) {
  const auto& size = problem.x.size;
  const auto& stride = problem.x.stride;
  for (std::int64_t position = begin; position < end; ++position) {
    const std::int64_t b = position / size[1];
    const std::int64_t t = position % size[1];
    const std::int64_t table = (problem.table_batch == 1 ? t : position) * problem.half;
    rotate_heads(problem, static_cast<const T*>(problem.x.data) + b * stride[0] + t * stride[1],
                 static_cast<T*>(out) + position * size[2] * size[3],
                 static_cast<const float*>(problem.cos) + table,
                 static_cast<const float*>(problem.sin) + table);
  }
}

void rotate(const Rope& problem, void* out, std::int64_t begin, std::int64_t end) {
  if (problem.x.dtype == DType::kFloat32) {
    rotate_positions<float>(problem, out, begin, end);
  } else {
    rotate_positions<std::uint16_t>(problem, out, begin, end);
  }
}

}  // namespace

RopeCpu rope_cpu() { return {rotate}; }

}  // namespace paperlab::kernels::PAPERLAB_ISA
