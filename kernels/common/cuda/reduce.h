#pragma once
// Sums over the threads of a team (team.h), in an order that is a function of the number of threads
// alone; on the device through warp shuffles, on the host the same additions in the same order.

#include "kernels/common/cuda/team.h"

namespace paperlab::kernels {

struct Plus {
  template <class Number>
  PAPERLAB_HD Number operator()(Number a, Number b) const {
    return a + b;
  }
};
// Of numbers alone: a NaN may be lost.
struct Larger {
  template <class Number>
  PAPERLAB_HD Number operator()(Number a, Number b) const {
    return a > b ? a : b;
  }
};

// Every thread combines its number with that of the thread whose number differs in bit `apart` (a
// power of two below the size of a warp). get(thread, registers) is a reference to the number; op
// must not depend on the order of its operands. All threads of a warp take part.
template <class R, class Get, class Op>
PAPERLAB_HD void exchange([[maybe_unused]] DeviceTeam<R>& team, [[maybe_unused]] int apart,
                          [[maybe_unused]] Get get, [[maybe_unused]] Op op) {
#ifdef __CUDA_ARCH__
  auto& own = get(team.thread, team.registers);
  own = op(own, __shfl_xor_sync(0xFFFFFFFFU, own, apart));
#endif
}
template <class R, class Get, class Op>
PAPERLAB_HD void exchange([[maybe_unused]] DeviceWarp<R>& team, [[maybe_unused]] int apart,
                          [[maybe_unused]] Get get, [[maybe_unused]] Op op) {
#ifdef __CUDA_ARCH__
  auto& own = get(team.thread, team.registers);
  own = op(own, __shfl_xor_sync(0xFFFFFFFFU, own, apart));
#endif
}
template <class R, class Get, class Op>
void exchange(HostTeam<R>& team, int apart, Get get, Op op) {
  for (std::size_t i = 0; i < team.registers.size(); ++i) {
    const std::size_t other = i ^ static_cast<std::size_t>(apart);
    if (i < other) {  // both at once
      auto& low = get(static_cast<int>(i), team.registers[i]);
      auto& high = get(static_cast<int>(other), team.registers[other]);
      low = op(low, high);
      high = low;
    }
  }
}

// The same of kCount numbers, get(thread, registers, i), whose shuffles overlap.
template <int kCount, class T, class Get, class Op>
PAPERLAB_HD void exchange_all(T& team, int apart, Get get, Op op) {
  PAPERLAB_UNROLL
  for (int i = 0; i < kCount; ++i) {
    exchange(team, apart, [&](int thread, auto& own) -> auto& { return get(thread, own, i); }, op);
  }
}

// Every thread gets the combination of its run of `width` neighbours, a power of two up to a warp,
// in a butterfly: first those width / 2 apart, last those side by side. All get the same bits.
template <class T, class Get, class Op>
PAPERLAB_HD void combine_neighbours(T& team, int width, Get get, Op op) {
  for (int apart = width / 2; apart > 0; apart /= 2) {
    exchange(team, apart, get, op);
  }
}

template <class T, class Get>
PAPERLAB_HD void sum_neighbours(T& team, int width, Get get) {
  combine_neighbours(team, width, get, Plus{});
}

// The same of kCount numbers, get(thread, registers, i).
template <int kCount, class T, class Get>
PAPERLAB_HD void sum_neighbours(T& team, int width, Get get) {
  for (int apart = width / 2; apart > 0; apart /= 2) {
    exchange_all<kCount>(team, apart, get, Plus{});
  }
}

// Numbers of shared memory that sum_threads needs for `count` sums at once.
PAPERLAB_HD constexpr int sum_memory(int num_threads, int count) {
  return count * ((num_threads + kWarp - 1) / kWarp);
}

// The same for runs of `width` threads, a power of two, of a team of any size: butterflies within
// warps, then the warps of a run in order. kCount sums at once; get(thread, registers, i) is a
// reference to number i. memory: shared, sum_memory(num_threads, kCount) numbers; free again
// afterwards. Every thread of the team takes part.
template <int kCount, class T, class Number, class Get>
PAPERLAB_HD void sum_threads(T& team, int num_threads, int width, Number* memory, Get get) {
  sum_neighbours<kCount>(team, width < kWarp ? width : kWarp, get);
  if (width <= kWarp) {
    return;
  }
  const int num_warps = num_threads / kWarp;
  team.each([&](int thread, auto& own) {
    if (thread % kWarp == 0) {
      PAPERLAB_UNROLL
      for (int i = 0; i < kCount; ++i) {
        memory[i * num_warps + thread / kWarp] = get(thread, own, i);
      }
    }
  });
  team.each([&](int thread, auto& own) {
    const int first = (thread & -width) / kWarp;
    PAPERLAB_UNROLL
    for (int i = 0; i < kCount; ++i) {
      Number sum = memory[i * num_warps + first];
      for (int warp = 1; warp < width / kWarp; ++warp) {
        sum += memory[i * num_warps + first + warp];
      }
      get(thread, own, i) = sum;
    }
  });
}

}  // namespace paperlab::kernels
