#pragma once
// Counts what operator new hands out in this executable: link peak_memory.cpp to use it.

#include <cstdint>
#include <functional>

namespace paperlab::bench {

// The most bytes that were allocated at a time while `work` ran, beyond those before it.
std::int64_t peak_bytes(const std::function<void()>& work);

}  // namespace paperlab::bench
