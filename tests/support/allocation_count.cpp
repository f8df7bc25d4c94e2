#include "tests/support/allocation_count.h"

#include <atomic>
#include <cstdlib>
#include <new>

namespace paperlab::test {
namespace {

std::atomic<std::int64_t> num_allocations{0};
std::atomic<std::int64_t> num_bytes{0};

void* allocate(std::size_t size) {
  num_allocations.fetch_add(1, std::memory_order_relaxed);
  num_bytes.fetch_add(static_cast<std::int64_t>(size), std::memory_order_relaxed);
  void* memory = std::malloc(size == 0 ? 1 : size);
  if (memory == nullptr) {
    throw std::bad_alloc();
  }
  return memory;
}

}  // namespace

Allocations allocations() { return {num_allocations.load(), num_bytes.load()}; }

}  // namespace paperlab::test

void* operator new(std::size_t size) { return paperlab::test::allocate(size); }
void* operator new[](std::size_t size) { return paperlab::test::allocate(size); }
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete[](void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete[](void* memory, std::size_t) noexcept { std::free(memory); }
