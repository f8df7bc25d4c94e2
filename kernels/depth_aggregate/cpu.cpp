// Compiled once for each instruction set. The columns of a token lie in the lanes. Memory is the
// limit, so sources come a few at a time, as runs that a processor reads at its full rate, and the
// next ones are fetched meanwhile; sums wait in the first-level cache.
#include "kernels/depth_aggregate/cpu.h"

#include "kernels/depth_aggregate/cpu_backward.h"
#include "kernels/depth_aggregate/cpu_generator.h"
#include "kernels/depth_aggregate/cpu_sum.h"

namespace paperlab::kernels::PAPERLAB_ISA {
namespace {

template <class T>
void pack_rows(const T* from, std::int64_t columns, TokenRange rows, float* to) {
  const std::int64_t stride = padded(columns);
  for (std::int64_t row = rows.begin; row < rows.end; ++row) {
    for_each_vector(columns, [&](std::int64_t i, std::int64_t count) {
      store(to + row * stride + i, load_row(from + row * columns + i, count));
    });
    for (std::int64_t i = num_blocks(columns, kFloatLanes) * kFloatLanes; i < stride; ++i) {
      to[row * stride + i] = 0.0F;
    }
  }
}

void pack(const void* from, DType dtype, std::int64_t columns, TokenRange rows, float* to) {
  if (dtype == DType::kFloat32) {
    pack_rows(static_cast<const float*>(from), columns, rows, to);
  } else {
    pack_rows(static_cast<const std::uint16_t*>(from), columns, rows, to);
  }
}

// Squares are turned over as vectors.
template <class T>
void pack_columns(const T* from, std::int64_t rows, std::int64_t columns, TokenRange range,
                  float* to) {
  const std::int64_t stride = padded(rows);
  alignas(64) float square[kFloatLanes * kFloatLanes];
  alignas(64) float turned[kFloatLanes * kFloatLanes];
  for (std::int64_t row = 0; row < stride; row += kFloatLanes) {
    for (std::int64_t first = range.begin; first < range.end; first += kFloatLanes) {
      const std::int64_t count = least(kFloatLanes, range.end - first);
      for (std::int64_t i = 0; i < kFloatLanes; ++i) {
        store(square + i * kFloatLanes,
              row + i < rows ? load_row(from + (row + i) * columns + first, count) : zero());
      }
      transpose_square(square, kFloatLanes, turned, kFloatLanes);
      for (std::int64_t i = 0; i < count; ++i) {
        store(to + (first + i) * stride + row, load(turned + i * kFloatLanes));
      }
    }
  }
}

void pack_transposed(const void* from, DType dtype, std::int64_t rows, std::int64_t columns,
                     TokenRange range, float* to) {
  if (dtype == DType::kFloat32) {
    pack_columns(static_cast<const float*>(from), rows, columns, range, to);
  } else {
    pack_columns(static_cast<const std::uint16_t*>(from), rows, columns, range, to);
  }
}

template <class T>
void add_elements(const T* a, const T* b, std::int64_t count, T* to) {
  for_each_vector(count, [&](std::int64_t i, std::int64_t lanes) {
    store_row(to + i, lanes, load_row(a + i, lanes) + load_row(b + i, lanes));
  });
}

template <class T>
void add_elements(const void* a, const void* b, TokenRange elements, void* to) {
  add_elements(static_cast<const T*>(a) + elements.begin, static_cast<const T*>(b) + elements.begin,
               elements.size(), static_cast<T*>(to) + elements.begin);
}

void add(DType dtype, const void* a, const void* b, TokenRange elements, void* to) {
  if (dtype == DType::kFloat32) {
    add_elements<float>(a, b, elements, to);
  } else {
    add_elements<std::uint16_t>(a, b, elements, to);
  }
}

void add_rows(const float* from, std::int64_t rows, std::int64_t columns, float* sums) {
  for_each_vector(columns, [&](std::int64_t i, std::int64_t count) {
    VecF sum = zero();
    for (std::int64_t row = 0; row < rows; ++row) {
      sum += load_row(from + row * columns + i, count);
    }
    store_row(sums + i, count, load_row(sums + i, count) + sum);
  });
}

void narrow(const float* from, std::int64_t count, DType dtype, void* to) {
  for_each_vector(count, [&](std::int64_t i, std::int64_t lanes) {
    if (dtype == DType::kFloat32) {
      store_row(static_cast<float*>(to) + i, lanes, load_row(from + i, lanes));
    } else {
      store_row(static_cast<std::uint16_t*>(to) + i, lanes, load_row(from + i, lanes));
    }
  });
}

}  // namespace

DepthAggregateCpu depth_aggregate_cpu() {
  return {pack,     pack_transposed,   add,      generate, forward,
          backward, generate_backward, add_rows, narrow};
}

}  // namespace paperlab::kernels::PAPERLAB_ISA
