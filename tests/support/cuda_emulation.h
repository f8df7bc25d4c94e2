#pragma once
// Launches of a GPU on the CPU: the blocks' own functions (common/cuda/team.h), block by block and
// thread by thread.

#include <cstdint>
#include <cstring>
#include <memory>

#include "kernels/common/cuda/team.h"

namespace paperlab::test {

// Calls body(team, memory, block) for each block; Memory is what the kernel has as shared memory
// and begins as 0xFF, NaN in every dtype. is_reversed: the last block first, and in it the last
// thread. R: the kernel's registers.
template <class R, class Memory, class F>
void emulate_blocks(std::int64_t num_blocks, int num_threads, bool is_reversed, F body) {
  const auto memory = std::make_unique<Memory>();
  for (std::int64_t i = 0; i < num_blocks; ++i) {
    std::memset(static_cast<void*>(memory.get()), 0xFF, sizeof(Memory));
    kernels::HostTeam<R> team(num_threads, is_reversed);
    body(team, *memory, is_reversed ? num_blocks - 1 - i : i);
  }
}

// The same without shared memory: body(team, number) for blocks, or for warps (32 threads).
template <class R, class F>
void emulate_teams(std::int64_t count, int num_threads, bool is_reversed, F body) {
  for (std::int64_t i = 0; i < count; ++i) {
    kernels::HostTeam<R> team(num_threads, is_reversed);
    body(team, is_reversed ? count - 1 - i : i);
  }
}

}  // namespace paperlab::test
