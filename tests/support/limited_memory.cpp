// LibTorch's memory of the CPU, which one allocation can be refused of. Linked into a test or
// loaded by Python (ctypes), after LibTorch.
#include "tests/support/limited_memory.h"

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <c10/util/Exception.h>

#include <atomic>
#include <cstddef>

namespace {

std::atomic<std::int64_t> allowed = -1;  // allocations until one is refused; below 0: no end
std::atomic<int> error_kind = 0;
std::atomic<std::int64_t> least_bytes = 0;
std::atomic<std::int64_t> counted = 0;

[[noreturn]] void refuse() {
  constexpr char kMessage[] = "this device has no memory left";
  switch (error_kind) {
    case kDeviceMemoryError:
      throw c10::OutOfMemoryError({__func__, __FILE__, __LINE__}, kMessage);
    case kAcceleratorError:
      throw c10::AcceleratorError({__func__, __FILE__, __LINE__}, 700, kMessage);
    default:
      throw c10::Error({__func__, __FILE__, __LINE__}, kMessage);
  }
}

class LimitedAllocator final : public c10::Allocator {
 public:
  explicit LimitedAllocator(c10::Allocator* base) : base_(base) {}

  c10::DataPtr allocate(std::size_t num_bytes) override {
    if (static_cast<std::int64_t>(num_bytes) >= least_bytes) {
      ++counted;
    }
    if (allowed >= 0 && allowed-- == 0) {
      refuse();
    }
    return base_->allocate(num_bytes);
  }
  c10::DeleterFnPtr raw_deleter() const override { return base_->raw_deleter(); }
  void copy_data(void* to, const void* from, std::size_t count) const override {
    base_->copy_data(to, from, count);
  }

 private:
  c10::Allocator* base_;
};

void install() {
  static LimitedAllocator allocator(c10::GetCPUAllocator());
  c10::SetCPUAllocator(&allocator, /*priority=*/100);
}

}  // namespace

void refuse_allocation(std::int64_t number, int kind) {
  install();
  error_kind = kind;
  allowed = number;
}

void count_allocations(std::int64_t num_bytes) {
  install();
  least_bytes = num_bytes;
  counted = 0;
}

std::int64_t num_allocations() { return counted; }
