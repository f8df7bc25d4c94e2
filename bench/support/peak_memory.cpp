#include "bench/support/peak_memory.h"

#include <malloc.h>

#include <atomic>
#include <cstdlib>
#include <new>

namespace {

std::atomic<std::int64_t> in_use = 0;
std::atomic<std::int64_t> most = 0;

void* counted(void* data) {
  if (data == nullptr) {
    throw std::bad_alloc();
  }
  const std::int64_t now = in_use += static_cast<std::int64_t>(malloc_usable_size(data));
  std::int64_t before = most;
  while (before < now && !most.compare_exchange_weak(before, now)) {
  }
  return data;
}

void release(void* data) {
  in_use -= static_cast<std::int64_t>(malloc_usable_size(data));
  std::free(data);
}

}  // namespace

// The other forms call these.
void* operator new(std::size_t size) { return counted(std::malloc(size + (size == 0 ? 1 : 0))); }
void* operator new(std::size_t size, std::align_val_t alignment) {
  const auto step = static_cast<std::size_t>(alignment);
  return counted(std::aligned_alloc(step, (size + step) / step * step));
}
void operator delete(void* data) noexcept { release(data); }
void operator delete(void* data, std::size_t) noexcept { release(data); }
void operator delete(void* data, std::align_val_t) noexcept { release(data); }
void operator delete(void* data, std::size_t, std::align_val_t) noexcept { release(data); }

namespace paperlab::bench {

std::int64_t peak_bytes(const std::function<void()>& work) {
  const std::int64_t before = in_use;
  most = before;
  work();
  return most - before;
}

}  // namespace paperlab::bench
