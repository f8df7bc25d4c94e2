#pragma once
// Products by a warpgroup, four warps that lie behind each other (wgmma, sm_90a): D += A B with A
// [64, 16] and B [16, N] of 16-bit elements, D [64, N] of float32. B lies in shared memory, A there
// or in registers. A product runs beside other instructions until it is waited for; its registers
// must not be touched until then. Layouts are those of the PTX manual (wgmma: register fragments,
// matrix descriptors, canonical layouts with a 128-byte swizzle).

#include <cstddef>
#include <cstdint>

#include "kernels/common/cuda/tma.h"
#include "kernels/common/cuda/warp.h"

namespace paperlab::kernels {

constexpr int kGroup = 128;  // threads of a warpgroup
constexpr int kGroupRows = 64;
constexpr int kFirstTurn = 8;  // of a block's barriers those by which two groups take turns

// Warp w of a group has rows 16 w.. of A and D, as in a product of its own (mma.h); fragment n of D
// are the columns 8 n..8 n + 7.
PAPERLAB_HD constexpr MatrixPlace group_place(int thread, MatrixPlace of_warp) {
  return {thread / kWarp * 16 + of_warp.row, of_warp.column};
}
PAPERLAB_HD constexpr MatrixPlace place_in_sums(int thread, int i) {  // i in 0..3
  return group_place(thread, place_in_c(thread % kWarp, i));
}

// A matrix in shared memory. Rows of 64 elements lie behind each other, swizzled (tma.h); either
// the product's inner index runs along a row (key rows for Q K^T), or its outer one does (value
// rows for P V) and panels of 64 outer indices lie `panel_bytes` apart.
PAPERLAB_HD constexpr std::uint64_t matrix_descriptor(std::uint32_t address,
                                                      std::uint32_t panel_bytes) {
  constexpr std::uint64_t kSwizzle128 = 1;
  constexpr std::uint64_t kEightRows = std::uint64_t{8} * kBoxRowBytes;
  return (address & 0x3FFFFU) >> 4U | std::uint64_t{panel_bytes >> 4U} << 16U |
         kEightRows >> 4U << 32U | kSwizzle128 << 62U;
}

// The matrix whose inner index starts 16 k later: chunks 2 k on of a row.
PAPERLAB_HD constexpr std::uint64_t inner_along_rows(std::uint64_t descriptor, int k) {
  return descriptor + 2 * static_cast<std::uint64_t>(k);
}
// The same where it runs across rows: 16 k rows on.
PAPERLAB_HD constexpr std::uint64_t inner_across_rows(std::uint64_t descriptor, int k) {
  return descriptor + kBoxRowBytes * static_cast<std::uint64_t>(k);
}

// The address of element (outer, inner) of a matrix, inner in 0..15.
PAPERLAB_HD constexpr std::uint32_t element_address(std::uint64_t descriptor, bool is_across,
                                                    int outer, int inner) {
  const auto field = [&](unsigned first) {
    return static_cast<std::uint32_t>(descriptor >> first & 0x3FFFU) << 4U;
  };
  const auto o = static_cast<std::uint32_t>(outer);
  const auto i = static_cast<std::uint32_t>(inner);
  const std::uint32_t row = is_across ? i : o;
  const std::uint32_t column = is_across ? o % kBoxColumns : i;
  const std::uint32_t panel = is_across ? o / kBoxColumns * field(16) : 0;
  return swizzled(field(0) + panel + row / 8 * field(32) + row % 8 * kBoxRowBytes + 2 * column);
}

// ---------------------------------------------------------------------------------------------

#ifdef PAPERLAB_SM90A

#define PAPERLAB_REGISTERS_32                                               \
  "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}"
#define PAPERLAB_REGISTERS_64                                                        \
  "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "          \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}"
#define PAPERLAB_SUMS(n) \
  "+f"(c[n].value[0]), "+f"(c[n].value[1]), "+f"(c[n].value[2]), "+f"(c[n].value[3])
#define PAPERLAB_SUMS_8(n)                                                            \
  PAPERLAB_SUMS(n), PAPERLAB_SUMS(n + 1), PAPERLAB_SUMS(n + 2), PAPERLAB_SUMS(n + 3), \
      PAPERLAB_SUMS(n + 4), PAPERLAB_SUMS(n + 5), PAPERLAB_SUMS(n + 6), PAPERLAB_SUMS(n + 7)

// One product of each kind. keeps: 0 where c is overwritten. The last numbers of the instruction:
// signs of A and B, and which of them has its outer index along rows.
#define PAPERLAB_GROUP_PRODUCTS(E, TYPE)                                                          \
  __device__ __forceinline__ void multiply_group(E, OwnValues<float, 4>(&c)[16], std::uint64_t a, \
                                                 std::uint64_t b, int keeps) {                    \
    asm volatile(                                                                                 \
        "{\n.reg .pred keeps;\nsetp.ne.b32 keeps, %66, 0;\n"                                      \
        "wgmma.mma_async.sync.aligned.m64n128k16.f32." TYPE "." TYPE " " PAPERLAB_REGISTERS_64    \
        ", %64, %65, keeps, 1, 1, 0, 0;\n}"                                                       \
        : PAPERLAB_SUMS_8(0), PAPERLAB_SUMS_8(8)                                                  \
        : "l"(a), "l"(b), "r"(keeps));                                                            \
  }                                                                                               \
  __device__ __forceinline__ void multiply_group(E, OwnValues<float, 4>(&c)[16],                  \
                                                 const std::uint32_t (&a)[4], std::uint64_t b) {  \
    asm volatile(                                                                                 \
        "{\n.reg .pred keeps;\nsetp.ne.b32 keeps, 1, 0;\n"                                        \
        "wgmma.mma_async.sync.aligned.m64n128k16.f32." TYPE "." TYPE " " PAPERLAB_REGISTERS_64    \
        ", {%64, %65, %66, %67}, %68, keeps, 1, 1, 1;\n}"                                         \
        : PAPERLAB_SUMS_8(0), PAPERLAB_SUMS_8(8)                                                  \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                                    \
  }                                                                                               \
  __device__ __forceinline__ void multiply_group(E, OwnValues<float, 4>(&c)[8],                   \
                                                 const std::uint32_t (&a)[4], std::uint64_t b) {  \
    asm volatile(                                                                                 \
        "{\n.reg .pred keeps;\nsetp.ne.b32 keeps, 1, 0;\n"                                        \
        "wgmma.mma_async.sync.aligned.m64n64k16.f32." TYPE "." TYPE " " PAPERLAB_REGISTERS_32     \
        ", {%32, %33, %34, %35}, %36, keeps, 1, 1, 1;\n}"                                         \
        : PAPERLAB_SUMS_8(0)                                                                      \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                                    \
  }
PAPERLAB_GROUP_PRODUCTS(BFloat16, "bf16")
PAPERLAB_GROUP_PRODUCTS(Float16, "f16")
#undef PAPERLAB_GROUP_PRODUCTS
#undef PAPERLAB_SUMS_8
#undef PAPERLAB_SUMS
#undef PAPERLAB_REGISTERS_64
#undef PAPERLAB_REGISTERS_32

#endif

// The compiler does not know that products run on: registers that they write, or read as the left
// matrix, are named here, so that nothing moves past the beginning or the waiting and no register
// of a product under way is used anew.
template <int kTiles>
PAPERLAB_HD inline void pin([[maybe_unused]] OwnValues<float, 4> (&sums)[kTiles]) {
#ifdef PAPERLAB_SM90A
  PAPERLAB_UNROLL
  for (int n = 0; n < kTiles; ++n) {
    PAPERLAB_UNROLL
    for (int i = 0; i < 4; ++i) {
      asm volatile("" : "+f"(sums[n].value[i])::"memory");
    }
  }
#endif
}
template <int kTiles>
PAPERLAB_HD inline void pin([[maybe_unused]] OwnValues<std::uint32_t, 4> (&left)[kTiles]) {
#ifdef PAPERLAB_SM90A
  PAPERLAB_UNROLL
  for (int n = 0; n < kTiles; ++n) {
    PAPERLAB_UNROLL
    for (int i = 0; i < 4; ++i) {
      asm volatile("" : "+r"(left[n].value[i])::"memory");
    }
  }
#endif
}

// ---------------------------------------------------------------------------------------------

// A warpgroup as an algorithm sees it. To functions over the lanes of a warp (warp.h,
// attention/block_tiles.h) that need no place in a fragment it is a warp of 128 lanes.
struct DeviceGroup {
  template <class T, int kCount>
  using Fragment = OwnValues<T, kCount>;

  int thread;   // of the group
  int barrier;  // the group's own, of the sixteen of a block; 0 is the block's

  template <class Phase>
  PAPERLAB_HD void lanes(Phase&& phase) const {
    phase(thread);
  }
  PAPERLAB_HD void converge() const { DeviceLanes{thread % kWarp}.converge(); }
  template <int kCount, class Op>
  PAPERLAB_HD void over_quad(OwnValues<float, kCount>& x, Op op) const {
    DeviceLanes{thread % kWarp}.over_quad(x, op);
  }

  PAPERLAB_HD void copy(std::uint16_t* tile, int at, const void* from, bool is_there) const {
    copy_async(tile, 2 * at, from, is_there);
  }
  // Two elements of a tile, and 16 bytes of one.
  PAPERLAB_HD void write(std::uint16_t* to, std::uint32_t word) const { store_word(to, word); }
  PAPERLAB_HD Pack read(const std::uint16_t* from) const { return load_pack(from); }
  // Until the group's copies and writes to shared memory are seen by its products and by all of it.
  PAPERLAB_HD void show() const {
    wait_for_copies();
    show_writes();
    sync();
  }
  PAPERLAB_HD void sync() const {
    converge();
#ifdef PAPERLAB_SM90A
    asm volatile("bar.sync %0, 128;" ::"r"(barrier) : "memory");
#endif
  }

  // By one thread.
  PAPERLAB_HD void await(Barrier& at, int phase) const { wait_at(at, phase); }
  // By all of the group: each for itself, but the lanes of a warp go on together.
  PAPERLAB_HD void await_all(Barrier& at, int phase) const {
    wait_at(at, phase);
    converge();
  }
  PAPERLAB_HD void arrive(Barrier& at) const { arrive_at(at); }
  PAPERLAB_HD void expect(Barrier& at, int bytes) const { arrive_expecting(at, bytes); }
  PAPERLAB_HD void fetch(const TensorMap& map, const BoxPlace& from, void* to, Barrier& at) const {
    fetch_box(map, from, to, at);
  }
  // One arrival of each warp, when all of it has come here; its lanes go on together.
  PAPERLAB_HD void arrive_by_warps(Barrier& at) const {
    converge();
    if (thread % kWarp == 0) {
      arrive_at(at);
    }
    converge();
  }

  // Two groups take turns: each waits until the other has given it the turn, once a turn.
  PAPERLAB_HD void await_turn([[maybe_unused]] int of) const {
    converge();
#ifdef PAPERLAB_SM90A
    asm volatile("bar.sync %0, %1;" ::"r"(kFirstTurn + of), "n"(2 * kGroup) : "memory");
#endif
  }
  PAPERLAB_HD void give_turn([[maybe_unused]] int to) const {
    converge();
#ifdef PAPERLAB_SM90A
    asm volatile("bar.arrive %0, %1;" ::"r"(kFirstTurn + to), "n"(2 * kGroup) : "memory");
#endif
  }

  PAPERLAB_HD std::uint32_t address(const void* shared) const {
#ifdef __CUDA_ARCH__
    return shared_address(shared);
#else
    return static_cast<std::uint32_t>(reinterpret_cast<std::uintptr_t>(shared));
#endif
  }

  // Products that follow may use these registers (sums, left matrices), whatever was done with them
  // before.
  template <class... Registers>
  PAPERLAB_HD void begin_products([[maybe_unused]] Registers&... registers) const {
#ifdef PAPERLAB_SM90A
    (pin(registers), ...);
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
  }
  // c = a b^T, or c += a b^T, of rows in shared memory.
  template <class E, int kTiles>
  PAPERLAB_HD void multiply_rows([[maybe_unused]] OwnValues<float, 4> (&c)[kTiles],
                                 [[maybe_unused]] std::uint64_t a, [[maybe_unused]] std::uint64_t b,
                                 [[maybe_unused]] bool keeps) const {
#ifdef PAPERLAB_SM90A
    multiply_group(E{}, c, a, b, keeps ? 1 : 0);
#endif
  }
  // c += a b of 16 rows in shared memory.
  template <class E, int kTiles>
  PAPERLAB_HD void multiply_columns([[maybe_unused]] OwnValues<float, 4> (&c)[kTiles],
                                    [[maybe_unused]] const OwnValues<std::uint32_t, 4>& a,
                                    [[maybe_unused]] std::uint64_t b) const {
#ifdef PAPERLAB_SM90A
    multiply_group(E{}, c, a.value, b);
#endif
  }
  // What was begun since the last call is one whole.
  PAPERLAB_HD void commit() const {
#ifdef PAPERLAB_SM90A
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
  }
  // Until all wholes but the newest kLeft are done; those that are done used these registers.
  template <int kLeft, class... Registers>
  PAPERLAB_HD void finish([[maybe_unused]] Registers&... registers) const {
#ifdef PAPERLAB_SM90A
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kLeft) : "memory");
    (pin(registers), ...);
#endif
  }
};

// ---------------------------------------------------------------------------------------------

// A product on the host: left(row, k) and right(column, k) are elements as numbers, c(thread, n)
// fragment n of a thread. The products are exact; their sum is rounded once.
template <int kColumns, class Left, class Right, class C>
void multiply_group_host(Left left, Right right, C c) {
  double columns[16][kColumns];
  for (int k = 0; k < 16; ++k) {
    for (int column = 0; column < kColumns; ++column) {
      columns[k][column] = right(column, k);
    }
  }
  double sums[kGroupRows][kColumns] = {};
  for (int row = 0; row < kGroupRows; ++row) {
    for (int k = 0; k < 16; ++k) {
      const double number = left(row, k);
      for (int column = 0; column < kColumns; ++column) {
        sums[row][column] += number * columns[k][column];
      }
    }
  }
  for (int thread = 0; thread < kGroup; ++thread) {
    for (int n = 0; n < kColumns / 8; ++n) {
      for (int i = 0; i < 4; ++i) {
        const MatrixPlace at = place_in_sums(thread, i);
        float& sum = c(thread, n)[i];
        sum = static_cast<float>(sum + sums[at.row][8 * n + at.column]);
      }
    }
  }
}

// ---------------------------------------------------------------------------------------------

// The registers of a group's threads from here on; all groups together have no more than at the
// launch.
template <int kRegisters>
PAPERLAB_HD void shrink_registers() {
#ifdef PAPERLAB_SM90A
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
#endif
}
template <int kRegisters>
PAPERLAB_HD void grow_registers() {
#ifdef PAPERLAB_SM90A
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
#endif
}

}  // namespace paperlab::kernels
