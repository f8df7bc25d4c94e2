#pragma once
// Barriers in shared memory that threads and bulk copies arrive at (mbarrier, sm_90), and the
// arithmetic of a ring of buffers between who fills them and who reads them. Phases of a barrier
// count from 0; phase -1 ended before the beginning. The instruction knows their parity alone: who
// waits must not be two phases behind.

#include <cstdint>

#include "kernels/common/cuda/copy_async.h"

// Where Hopper's own instructions may stand: code for sm_90a.
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define PAPERLAB_SM90A
#endif

namespace paperlab::kernels {

// The state is the hardware's.
struct alignas(8) Barrier {
  std::uint64_t state;
};

// Item i of a ring: it lies in buffer `stage`, is there when phase `filled` of that buffer's first
// barrier has ended, and may be written when phase `freed` of its second barrier has.
struct RingPlace {
  int stage;
  int filled;
  int freed;
};

PAPERLAB_HD constexpr RingPlace ring_place(int item, int num_stages) {
  const int round = item / num_stages;
  return {item - round * num_stages, round, round - 1};
}

PAPERLAB_HD constexpr std::uint32_t parity_of(int phase) {
  return static_cast<std::uint32_t>(phase) & 1U;
}

// A phase ends with its `arrivals`-th arrival, when all bytes expected have come, too.
PAPERLAB_HD inline void init_barrier([[maybe_unused]] Barrier& barrier,
                                     [[maybe_unused]] int arrivals) {
#ifdef PAPERLAB_SM90A
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(&barrier)),
               "r"(arrivals)
               : "memory");
#endif
}

// Of the thread that initialized barriers, before the block's barrier: bulk copies see them.
PAPERLAB_HD inline void show_barriers() {
#ifdef PAPERLAB_SM90A
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

PAPERLAB_HD inline void arrive_at([[maybe_unused]] Barrier& barrier) {
#ifdef PAPERLAB_SM90A
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(&barrier))
               : "memory");
#endif
}

// Arrives, and lets the phase wait for so many bytes more.
PAPERLAB_HD inline void arrive_expecting([[maybe_unused]] Barrier& barrier,
                                         [[maybe_unused]] int bytes) {
#ifdef PAPERLAB_SM90A
  asm volatile(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(&barrier)),
      "r"(bytes)
      : "memory");
#endif
}

// Until the phase has ended.
PAPERLAB_HD inline void wait_at([[maybe_unused]] Barrier& barrier, [[maybe_unused]] int phase) {
#ifdef PAPERLAB_SM90A
  std::uint32_t has_ended = 0;
  do {
    asm volatile(
        "{\n"
        ".reg .pred ended;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 ended, [%1], %2;\n"
        "selp.u32 %0, 1, 0, ended;\n"
        "}"
        : "=r"(has_ended)
        : "r"(shared_address(&barrier)), "r"(parity_of(phase))
        : "memory");
  } while (has_ended == 0);
#endif
}

}  // namespace paperlab::kernels
