#pragma once
// Counts what operator new hands out in this executable: link allocation_count.cpp to use it.

#include <cstdint>

namespace paperlab::test {

struct Allocations {
  std::int64_t count = 0;
  std::int64_t bytes = 0;
};

// Since the start of the process, on all threads.
Allocations allocations();

}  // namespace paperlab::test
