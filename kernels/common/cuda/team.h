#pragma once
// A block of threads as an algorithm sees it: phases that every thread runs, with a barrier after
// each. The GPU runs a phase on all threads at once, HostTeam one thread after the other: CPU tests
// then run the very functions that the GPU runs.

#include <concepts>
#include <cstddef>
#include <vector>

#include "paperlab/core/host_device.h"

// Register arrays need compile-time indices on the GPU.
#ifdef __CUDA_ARCH__
#define PAPERLAB_UNROLL _Pragma("unroll")
#else
#define PAPERLAB_UNROLL
#endif

namespace paperlab::kernels {

constexpr int kWarp = 32;

// Of threads that keep nothing between phases.
struct NoRegisters {};

// each(phase) calls phase(thread, registers of that thread) for every thread of the block. The
// teams below also have each_alone(phase), without the barrier: nothing that follows before the
// next barrier reads what the phase wrote for other threads, or writes what it read.
template <class T>
concept Team = requires(T& team, void (&phase)(int, typename T::Registers&)) {
  { team.each(phase) } -> std::same_as<void>;
};

template <class R>
struct DeviceTeam {
  using Registers = R;

  int thread;
  Registers registers;

  template <class Phase>
  PAPERLAB_HD void each_alone(Phase&& phase) {
    phase(thread, registers);
  }
  template <class Phase>
  PAPERLAB_HD void each(Phase&& phase) {
    phase(thread, registers);
#ifdef __CUDA_ARCH__
    __syncthreads();
#endif
  }
};

// The threads of one warp as a team of their own: its phases end without waiting for other warps.
template <class R>
struct DeviceWarp {
  using Registers = R;

  int thread;  // of the warp
  Registers registers;

  template <class Phase>
  PAPERLAB_HD void each_alone(Phase&& phase) {
    phase(thread, registers);
  }
  template <class Phase>
  PAPERLAB_HD void each(Phase&& phase) {
    phase(thread, registers);
#ifdef __CUDA_ARCH__
    __syncwarp();
#endif
  }
};

template <class R>
struct HostTeam {
  using Registers = R;

  std::vector<Registers> registers;
  bool is_reversed;  // last thread first: a phase must not notice

  explicit HostTeam(int num_threads, bool reversed = false)
      : registers(static_cast<std::size_t>(num_threads)), is_reversed(reversed) {}

  template <class Phase>
  void each(Phase&& phase) {
    for (std::size_t i = 0; i < registers.size(); ++i) {
      const std::size_t thread = is_reversed ? registers.size() - 1 - i : i;
      phase(static_cast<int>(thread), registers[thread]);
    }
  }
  template <class Phase>
  void each_alone(Phase&& phase) {
    each(phase);
  }
};

}  // namespace paperlab::kernels
