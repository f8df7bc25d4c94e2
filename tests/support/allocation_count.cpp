#include "tests/support/allocation_count.h"

#include <atomic>
#include <cstdlib>
#include <new>

namespace paperlab::test {
namespace {

std::atomic<std::int64_t> num_allocations{0};
std::atomic<std::int64_t> num_bytes{0};

[[maybe_unused]] void* allocate(std::size_t size) noexcept {
  num_allocations.fetch_add(1, std::memory_order_relaxed);
  num_bytes.fetch_add(static_cast<std::int64_t>(size), std::memory_order_relaxed);
  return std::malloc(size == 0 ? 1 : size);
}

[[maybe_unused]] void* allocate_or_throw(std::size_t size) {
  void* memory = allocate(size);
  if (memory == nullptr) {
    throw std::bad_alloc();
  }
  return memory;
}

}  // namespace

Allocations allocations() { return {num_allocations.load(), num_bytes.load()}; }

}  // namespace paperlab::test

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)

void* operator new(std::size_t size) { return paperlab::test::allocate_or_throw(size); }
void* operator new[](std::size_t size) { return paperlab::test::allocate_or_throw(size); }
void* operator new(std::size_t size, const std::nothrow_t&) noexcept {
  return paperlab::test::allocate(size);
}
void* operator new[](std::size_t size, const std::nothrow_t&) noexcept {
  return paperlab::test::allocate(size);
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete[](void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete[](void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete(void* memory, const std::nothrow_t&) noexcept { std::free(memory); }
void operator delete[](void* memory, const std::nothrow_t&) noexcept { std::free(memory); }

#endif
