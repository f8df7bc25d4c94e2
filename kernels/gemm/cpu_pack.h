#pragma once
// Panels of an operand as the register tile reads them: [terms][rows]. Include only from cpu.cpp.

#include "kernels/gemm/cpu.h"
#include "kernels/gemm/cpu_lanes.h"

namespace paperlab::kernels::PAPERLAB_ISA {
namespace {

inline float widened(float x) { return x; }
inline double widened(double x) { return x; }
inline float widened(std::uint16_t x) { return __builtin_bit_cast(float, std::uint32_t{x} << 16U); }

template <class From>
struct Widened {
  using Type = float;
};
template <>
struct Widened<double> {
  using Type = double;
};

// Any strides and types, number by number.
template <class From, class T>
void pack_plainly(const GemmPanel& panel, T* to) {
  const auto* from = static_cast<const From*>(panel.from->data);
  for (std::int64_t k = panel.terms.begin; k < panel.terms.end; ++k) {
    for (std::int64_t r = 0; r < panel.width; ++r) {
      const std::int64_t at = (panel.first + r) * panel.from->row_stride + k * panel.from->k_stride;
      *to++ = r < panel.count ? widened(from[at]) : T{0};
    }
  }
}

// Rows lie side by side in memory: copies runs of them.
template <class From, class T>
void pack_columns(const GemmPanel& panel, T* to) {
  const auto* from = static_cast<const From*>(panel.from->data) + panel.first;
  const bool is_whole = panel.left >= ceil_div(panel.width, kFloatLanes) * kFloatLanes;
  for (std::int64_t k = panel.terms.begin; k < panel.terms.end; ++k) {
    const From* row = from + k * panel.from->k_stride;
    if constexpr (sizeof(T) == sizeof(double)) {
      __builtin_memcpy(to, row, static_cast<std::size_t>(panel.count) * sizeof(T));
    } else if (is_whole) {
      for (std::int64_t r = 0; r < panel.width; r += kFloatLanes) {
        store(to + r, load_row(row + r, kFloatLanes));
      }
    } else {
      for_each_vector(panel.count, [&](std::int64_t r, std::int64_t count) {
        store_row(to + r, count, load_row(row + r, count));
      });
    }
    for (std::int64_t r = panel.count; r < panel.width; ++r) {
      to[r] = T{0};
    }
    to += panel.width;
  }
}

// A square of rows first.. and terms k.. of an operand whose rows are contiguous; what is absent
// is 0.
template <class From>
void load_square(const GemmPanel& panel, std::int64_t row, std::int64_t k, float* square) {
  const std::int64_t num_k = panel.terms.end - k < kFloatLanes ? panel.terms.end - k : kFloatLanes;
  for (std::int64_t r = 0; r < kFloatLanes; ++r) {
    const bool is_there = row + r < panel.count;
    const From* from = static_cast<const From*>(panel.from->data) +
                       (panel.first + (is_there ? row + r : 0)) * panel.from->row_stride + k;
    store(square + r * kFloatLanes, is_there ? load_row(from, num_k) : zero());
  }
}

// Rows are contiguous: transposes squares. Those of the last rows come first, because they may
// write past the panel's width, over the first rows of the next term.
template <class From>
void pack_rows(const GemmPanel& panel, float* to) {
  constexpr std::int64_t kLanes = kFloatLanes;
  const std::int64_t last_row = (panel.width - 1) / kLanes * kLanes;
  for (std::int64_t k = panel.terms.begin; k < panel.terms.end; k += kLanes) {
    float* at = to + (k - panel.terms.begin) * panel.width;
    const std::int64_t num_k = panel.terms.end - k < kLanes ? panel.terms.end - k : kLanes;
    for (std::int64_t row = last_row; row >= 0; row -= kLanes) {
      alignas(64) float square[kLanes * kLanes];
      const float* from = square;
      std::int64_t stride = kLanes;
      if (sizeof(From) == sizeof(float) && row + kLanes <= panel.left && num_k == kLanes) {
        from = static_cast<const float*>(panel.from->data) +
               (panel.first + row) * panel.from->row_stride + k;
        stride = panel.from->row_stride;
      } else {
        load_square<From>(panel, row, k, square);
      }
      if (num_k == kLanes) {
        transpose_square(from, stride, at + row, panel.width);
      } else {
        alignas(64) float turned[kLanes * kLanes];
        transpose_square(from, stride, turned, kLanes);
        for (std::int64_t i = 0; i < num_k; ++i) {
          store(at + i * panel.width + row, load(turned + i * kLanes));
        }
      }
    }
  }
}

template <class From>
void pack_as(const GemmPanel& panel) {
  using T = typename Widened<From>::Type;
  auto* to = static_cast<T*>(panel.to);
  if (panel.from->row_stride == 1) {
    pack_columns<From>(panel, to);
  } else if constexpr (sizeof(T) == sizeof(float)) {
    pack_rows<From>(panel, to);
  } else {
    pack_plainly<From>(panel, to);
  }
}

void pack(const GemmPanel& panel) {
  switch (panel.dtype) {
    case DType::kFloat32:
      return pack_as<float>(panel);
    case DType::kBFloat16:
      return pack_as<std::uint16_t>(panel);
    case DType::kFloat64:
      return pack_as<double>(panel);
    case DType::kFloat16:
      break;  // refused before
  }
}

}  // namespace
}  // namespace paperlab::kernels::PAPERLAB_ISA
