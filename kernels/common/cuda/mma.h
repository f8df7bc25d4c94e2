#pragma once
// Products of small matrices by the tensor cores: D = A B + C with A [16, 16] and B [16, 8] of
// 16-bit elements, C and D [16, 8] of float32 (mma.m16n8k16), and the loads of 8 x 8 matrices that
// feed them (ldmatrix). Where each lane of a warp keeps its elements is arithmetic that both sides
// use; the layouts are those of the PTX manual (sections on mma.m16n8k16 and ldmatrix).

#include <cstdint>

#include "kernels/common/cuda/elements.h"

namespace paperlab::kernels {

struct MatrixPlace {
  int row;
  int column;

  PAPERLAB_HD constexpr bool operator==(const MatrixPlace& other) const {
    return row == other.row && column == other.column;
  }
};

// Elements 2 i and 2 i + 1 are the low and the high half of a lane's word i.
PAPERLAB_HD constexpr MatrixPlace place_in_a(int lane, int i) {  // i in 0..7
  return {lane / 4 + i / 2 % 2 * 8, lane % 4 * 2 + i % 2 + i / 4 * 8};
}
PAPERLAB_HD constexpr MatrixPlace place_in_b(int lane, int i) {  // i in 0..3
  return {lane % 4 * 2 + i % 2 + i / 2 * 8, lane / 4};
}
PAPERLAB_HD constexpr MatrixPlace place_in_c(int lane, int i) {  // i in 0..3: float32
  return {lane / 4 + i / 2 * 8, lane % 4 * 2 + i % 2};
}

// Of an 8 x 8 matrix that ldmatrix reads: lane 8 m + r names row r of matrix m, and every lane gets
// two elements of each matrix, as they lie or transposed.
PAPERLAB_HD constexpr MatrixPlace place_in_matrix(int lane, int i,
                                                  bool is_transposed) {  // i in 0..1
  return is_transposed ? MatrixPlace{lane % 4 * 2 + i, lane / 4}
                       : MatrixPlace{lane / 4, lane % 4 * 2 + i};
}

// ---------------------------------------------------------------------------------------------

#ifdef __CUDA_ARCH__

template <bool kTransposed>
__device__ __forceinline__ void load_matrices(unsigned from, std::uint32_t (&to)[4]) {
  if constexpr (kTransposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(from));
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(from));
  }
}

template <class T>
__device__ __forceinline__ void multiply_matrices(float (&c)[4], const std::uint32_t (&a)[4],
                                                  std::uint32_t b0, std::uint32_t b1);
template <>
__device__ __forceinline__ void multiply_matrices<BFloat16>(float (&c)[4],
                                                            const std::uint32_t (&a)[4],
                                                            std::uint32_t b0, std::uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <>
__device__ __forceinline__ void multiply_matrices<Float16>(float (&c)[4],
                                                           const std::uint32_t (&a)[4],
                                                           std::uint32_t b0, std::uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

#endif

// ---------------------------------------------------------------------------------------------

// The halves of a lane's words on the host.
inline std::uint16_t half_of(const std::uint32_t* words, int i) {
  return static_cast<std::uint16_t>(words[i / 2] >> (i % 2 * 16));
}

// ldmatrix of four matrices: row(lane) is the address of the row that the lane names, get(lane) the
// four words that it gets.
template <bool kTransposed, class Row, class Get>
void load_matrices_host(Row row, Get get) {
  for (int matrix = 0; matrix < 4; ++matrix) {
    std::uint16_t elements[8][8];
    for (int r = 0; r < 8; ++r) {
      std::memcpy(elements[r], row(8 * matrix + r), sizeof(elements[r]));
    }
    for (int lane = 0; lane < kWarp; ++lane) {
      std::uint32_t word = 0;
      for (int i = 0; i < 2; ++i) {
        const MatrixPlace at = place_in_matrix(lane, i, kTransposed);
        word |= std::uint32_t{elements[at.row][at.column]} << (16 * i);
      }
      get(lane)[matrix] = word;
    }
  }
}

// One mma of all lanes: a(lane) and b(lane) are their words, c(lane) four numbers. The products are
// exact; their sum is rounded once.
template <class T, class A, class B, class C>
void multiply_matrices_host(A a, B b, C c) {
  double left[16][16];
  double right[8][16];
  for (int lane = 0; lane < kWarp; ++lane) {
    for (int i = 0; i < 8; ++i) {
      const MatrixPlace at = place_in_a(lane, i);
      left[at.row][at.column] = to_number(T{half_of(a(lane), i)});
    }
    for (int i = 0; i < 4; ++i) {
      const MatrixPlace at = place_in_b(lane, i);
      right[at.column][at.row] = to_number(T{half_of(b(lane), i)});
    }
  }
  for (int lane = 0; lane < kWarp; ++lane) {
    for (int i = 0; i < 4; ++i) {
      const MatrixPlace at = place_in_c(lane, i);
      double sum = 0.0;
      for (int k = 0; k < 16; ++k) {
        sum += left[at.row][k] * right[at.column][k];
      }
      c(lane)[i] = static_cast<float>(c(lane)[i] + sum);
    }
  }
}

}  // namespace paperlab::kernels
