#pragma once
// What the passes of cpu.cpp share: registers, the order of groups and chunks, single numbers.
#include "kernels/common/vec_row.h"
#include "kernels/depth_aggregate/cpu.h"

namespace paperlab::kernels::PAPERLAB_ISA {
namespace {

// By the number of registers: weights of all ways and sources of a group, and sums.
#if defined(__AVX512F__)
constexpr int kMostSources = 6;
constexpr int kMostVecs = 4;
#else
constexpr int kMostSources = 2;
constexpr int kMostVecs = 2;
#endif

inline std::int64_t least(std::int64_t a, std::int64_t b) { return a < b ? a : b; }

inline float number(const float* p) { return *p; }
inline float number(const std::uint16_t* p) {
  const std::uint32_t bits = std::uint32_t{*p} << 16U;
  float value = 0.0F;
  __builtin_memcpy(&value, &bits, sizeof(value));
  return value;
}

// Calls f(0, ..., kCount - 1), unrolled.
template <int kCount, class F>
inline void repeat(F f) {
#pragma GCC unroll 16
  for (int i = 0; i < kCount; ++i) {
    f(i);
  }
}

// Where a pass over tokens is: a group of sources, a chunk of columns of a block of tokens.
struct Place {
  std::int64_t token;  // the block's first
  std::int64_t column;
  std::int64_t group;
};

// How runs of `run` numbers and groups of `most` sources follow each other.
struct Grid {
  std::int64_t width;
  std::int64_t run;
  std::int64_t num_sources;
  std::int64_t num_groups;
  std::int64_t block;  // tokens

  Grid(const DepthAggregate& problem, std::int64_t run_of, std::int64_t most)
      : width(problem.width),
        run(run_of),
        num_sources(problem.num_sources),
        num_groups(num_blocks(problem.num_sources, most)),
        block(least(run / padded(width), kRunTokens)) {
    block = block < 1 ? 1 : block;
  }

  Place after(Place at) const {
    if (++at.group == num_groups) {
      at.group = 0;
      at.column += run;
      if (at.column >= width) {
        at.column = 0;
        at.token += block;
      }
    }
    return at;
  }
  std::int64_t first_source(std::int64_t group) const { return group * num_sources / num_groups; }
  std::int64_t columns(Place at) const { return least(width - at.column, run); }
};

inline float weight_of(const DepthAggregate& problem, std::int64_t token, std::int64_t way,
                       std::int64_t source) {
  const std::int64_t at = token * problem.token_stride + way * problem.way_stride + source;
  return problem.weights_dtype == DType::kFloat32
             ? static_cast<const float*>(problem.weights)[at]
             : number(static_cast<const std::uint16_t*>(problem.weights) + at);
}

template <class T>
const T* source_at(const DepthAggregate& problem, std::int64_t source, std::int64_t element) {
  return static_cast<const T*>(problem.sources[source]) + element;
}

}  // namespace
}  // namespace paperlab::kernels::PAPERLAB_ISA
