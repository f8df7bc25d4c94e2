#pragma once
// A warp as an algorithm sees it: fragments that are spread over its lanes, and what lanes do
// together. On the GPU a fragment is the own lane's part and lanes(phase) runs the phase once; on
// the host it holds all lanes' parts, lanes(phase) runs one lane after the other, and products,
// loads and exchanges work on all lanes by the documented layouts (mma.h). A team of warps
// (each_warp) has a barrier after every phase, like a team of threads (team.h).

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "kernels/common/cuda/copy_async.h"
#include "kernels/common/cuda/mma.h"
#include "kernels/common/cuda/team.h"

namespace paperlab::kernels {

// kCount values of one lane.
template <class T, int kCount>
struct OwnValues {
  T value[kCount];

  PAPERLAB_HD T (&of(int)) [kCount] { return value; } PAPERLAB_HD const T (&of(int) const)[kCount] {
    return value;
  }
};

// kCount values of every lane.
template <class T, int kCount>
struct AllValues {
  T value[kWarp][kCount];

  T (&of(int lane)) [kCount] { return value[lane]; } const T (&of(int lane) const)[kCount] {
    return value[lane];
  }
};

struct DeviceLanes {
  template <class T, int kCount>
  using Fragment = OwnValues<T, kCount>;

  int lane;

  template <class Phase>
  PAPERLAB_HD void lanes(Phase&& phase) const {
    phase(lane);
  }

  // Until all lanes are here. Loads and products below (.aligned in PTX) need all lanes at one
  // instruction; behind branches that lanes take by their own values nothing else promises that.
  PAPERLAB_HD void converge() const {
#ifdef __CUDA_ARCH__
    __syncwarp();
#endif
  }

  // Every lane gets op over the four lanes of its quad, 4 i..4 i + 3.
  template <int kCount, class Op>
  PAPERLAB_HD void over_quad([[maybe_unused]] OwnValues<float, kCount>& x,
                             [[maybe_unused]] Op op) const {
#ifdef __CUDA_ARCH__
    PAPERLAB_UNROLL
    for (int i = 0; i < kCount; ++i) {
      x.value[i] = op(x.value[i], __shfl_xor_sync(0xFFFFFFFFU, x.value[i], 2));
      x.value[i] = op(x.value[i], __shfl_xor_sync(0xFFFFFFFFU, x.value[i], 1));
    }
#endif
  }

  // Four 8 x 8 matrices of 16-bit elements in shared memory; row(lane) is where the row that a lane
  // names begins, in elements from `tile`.
  template <bool kTransposed, class Row>
  PAPERLAB_HD void load([[maybe_unused]] OwnValues<std::uint32_t, 4>& to,
                        [[maybe_unused]] const std::uint16_t* tile,
                        [[maybe_unused]] Row row) const {
#ifdef __CUDA_ARCH__
    load_matrices<kTransposed>(shared_address(tile) + 2U * static_cast<unsigned>(row(lane)),
                               to.value);
#endif
  }

  // c += a b, where b is the words 2 kHalf and 2 kHalf + 1 of `b`.
  template <class T, int kHalf>
  PAPERLAB_HD void multiply([[maybe_unused]] OwnValues<float, 4>& c,
                            [[maybe_unused]] const OwnValues<std::uint32_t, 4>& a,
                            [[maybe_unused]] const OwnValues<std::uint32_t, 4>& b) const {
#ifdef __CUDA_ARCH__
    multiply_matrices<T>(c.value, a.value, b.value[2 * kHalf], b.value[2 * kHalf + 1]);
#endif
  }

  // 16 bytes to element `at` of a tile (copy_async.h).
  PAPERLAB_HD void copy(std::uint16_t* tile, int at, const void* from, bool is_there) const {
    copy_async(tile, 2 * at, from, is_there);
  }
  PAPERLAB_HD void wait() const { wait_for_copies(); }
  // 16 bytes of a tile, which any lane may have written.
  PAPERLAB_HD Pack read(const std::uint16_t* from) const { return load_pack(from); }
};

struct HostLanes {
  template <class T, int kCount>
  using Fragment = AllValues<T, kCount>;

  bool is_reversed = false;
  PendingCopies copies = {};

  template <class Phase>
  void lanes(Phase&& phase) const {
    for (int i = 0; i < kWarp; ++i) {
      phase(is_reversed ? kWarp - 1 - i : i);
    }
  }

  void converge() const {}

  template <int kCount, class Op>
  void over_quad(AllValues<float, kCount>& x, Op op) const {
    for (const int apart : {2, 1}) {
      const AllValues<float, kCount> old = x;
      for (int lane = 0; lane < kWarp; ++lane) {
        for (int i = 0; i < kCount; ++i) {
          x.of(lane)[i] = op(old.of(lane)[i], old.of(lane ^ apart)[i]);
        }
      }
    }
  }

  template <bool kTransposed, class Row>
  void load(AllValues<std::uint32_t, 4>& to, const std::uint16_t* tile, Row row) const {
    load_matrices_host<kTransposed>([&](int lane) { return tile + row(lane); },
                                    [&](int lane) { return to.of(lane); });
  }

  template <class T, int kHalf>
  void multiply(AllValues<float, 4>& c, const AllValues<std::uint32_t, 4>& a,
                const AllValues<std::uint32_t, 4>& b) const {
    constexpr std::ptrdiff_t kFirst = std::ptrdiff_t{2} * kHalf;
    multiply_matrices_host<T>([&](int lane) { return a.of(lane); },
                              [&](int lane) { return b.of(lane) + kFirst; },
                              [&](int lane) { return c.of(lane); });
  }

  void copy(std::uint16_t* tile, int at, const void* from, bool is_there) {
    copies.add(tile + at, from, is_there);
  }
  void wait() { copies.finish(); }
  Pack read(const std::uint16_t* from) const { return load_pack(from); }
};

// ---------------------------------------------------------------------------------------------

// each_warp(phase) calls phase(lanes, warp, registers of that warp) for every warp of the block.
template <class R>
struct DeviceWarps {
  using Lanes = DeviceLanes;
  using Registers = R;

  int thread;
  Registers registers;

  template <class Phase>
  PAPERLAB_HD void each_warp(Phase&& phase) {
    int opaque = thread;
#ifdef __CUDA_ARCH__
    // What depends on the thread is computed in each phase anew: kept through a loop of phases, the
    // addresses alone would take dozens of registers.
    asm volatile("" : "+r"(opaque));
#endif
    DeviceLanes lanes{opaque % kWarp};
    phase(lanes, opaque / kWarp, registers);
#ifdef __CUDA_ARCH__
    __syncthreads();
#endif
  }
};

template <class R>
struct HostWarps {
  using Lanes = HostLanes;
  using Registers = R;

  std::vector<Registers> registers;
  std::vector<HostLanes> warps;
  bool is_reversed;  // last warp and lane first: a phase must not notice

  explicit HostWarps(int num_warps, bool reversed = false)
      : registers(static_cast<std::size_t>(num_warps)),
        warps(static_cast<std::size_t>(num_warps), HostLanes{reversed, {}}),
        is_reversed(reversed) {
    std::memset(static_cast<void*>(registers.data()), 0xFF, registers.size() * sizeof(R));  // NaN
  }

  template <class Phase>
  void each_warp(Phase&& phase) {
    for (std::size_t i = 0; i < warps.size(); ++i) {
      const std::size_t warp = is_reversed ? warps.size() - 1 - i : i;
      phase(warps[warp], static_cast<int>(warp), registers[warp]);
    }
  }
};

}  // namespace paperlab::kernels
