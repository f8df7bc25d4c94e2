#pragma once
// Counts what operator new hands out in this executable: link allocation_count.cpp to use it.

#include <cstdint>

namespace paperlab::test {

struct Allocations {
  std::int64_t count = 0;
  std::int64_t bytes = 0;
};

// False under sanitizers, which need an operator new of their own.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
inline constexpr bool kCountsAllocations = false;
#else
inline constexpr bool kCountsAllocations = true;
#endif

// Since the start of the process, on all threads.
Allocations allocations();

}  // namespace paperlab::test
