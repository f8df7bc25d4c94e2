#pragma once
// Copies of 16 bytes from global to shared memory that run beside the arithmetic (cp.async, sm_80
// on).

#include <cstddef>
#include <cstring>
#include <vector>

#include "kernels/common/cuda/elements.h"

namespace paperlab::kernels {

#ifdef __CUDA_ARCH__
// Of shared memory, in 32 bits: half the registers of a pointer.
__device__ __forceinline__ unsigned shared_address(const void* shared) {
  return static_cast<unsigned>(__cvta_generic_to_shared(shared));
}
#endif

// Begins a copy of 16 aligned bytes to byte `at` of `shared`; zeros where !is_there, `from` then
// being any address of global memory, which is not read.
PAPERLAB_HD inline void copy_async([[maybe_unused]] void* shared, [[maybe_unused]] int at,
                                   [[maybe_unused]] const void* from,
                                   [[maybe_unused]] bool is_there) {
#ifdef __CUDA_ARCH__
  const unsigned to = shared_address(shared) + static_cast<unsigned>(at);
  const int bytes = is_there ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes)
               : "memory");
#endif
}

// Until all copies of this thread have arrived; others see them after a barrier.
PAPERLAB_HD inline void wait_for_copies() {
#ifdef __CUDA_ARCH__
  asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

// On the host a copy happens as late as it may: where it is waited for.
class PendingCopies {
 public:
  void add(void* to, const void* from, bool is_there) { copies_.push_back({to, from, is_there}); }
  void finish() {
    for (const Copy& copy : copies_) {
      if (copy.is_there) {
        std::memcpy(copy.to, copy.from, sizeof(Pack));
      } else {
        std::memset(copy.to, 0, sizeof(Pack));
      }
    }
    copies_.clear();
  }
  bool is_empty() const { return copies_.empty(); }

 private:
  struct Copy {
    void* to;
    const void* from;
    bool is_there;
  };
  std::vector<Copy> copies_;
};

}  // namespace paperlab::kernels
