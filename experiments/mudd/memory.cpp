#include "experiments/mudd/memory.h"

#include <ATen/DeviceAccelerator.h>
#include <ATen/ops/empty.h>
#include <c10/core/CPUAllocator.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <memory>

namespace paperlab::experiments::mudd {

namespace {

struct Count {
  std::atomic<std::int64_t> alive = 0;
  std::atomic<std::int64_t> peak = 0;
};

// The allocator that was there, and a count of what it gives.
class CountingAllocator final : public c10::Allocator {
 public:
  explicit CountingAllocator(c10::Allocator* inner) : inner_(inner) {}

  c10::DataPtr allocate(std::size_t size) override {
    auto block = std::make_unique<Block>(
        Block{inner_->allocate(size), static_cast<std::int64_t>(size), count_});
    count_->alive += block->size;
    count_->peak = std::max<std::int64_t>(count_->peak, count_->alive);
    void* const data = block->data.get();
    return {data, block.release(), &free, c10::Device(c10::kCPU)};
  }

  void copy_data(void* to, const void* from, std::size_t size) const override {
    default_copy_data(to, from, size);
  }

  Count& count() { return *count_; }

 private:
  struct Block {
    c10::DataPtr data;
    std::int64_t size;
    std::shared_ptr<Count> count;
  };

  static void free(void* context) {
    const std::unique_ptr<Block> block(static_cast<Block*>(context));
    block->count->alive -= block->size;
  }

  c10::Allocator* inner_;
  std::shared_ptr<Count> count_ = std::make_shared<Count>();
};

CountingAllocator& counting() {
  static CountingAllocator allocator(c10::GetCPUAllocator());  // outlives every tensor
  return allocator;
}

c10::CachingAllocator::Stat allocated_on(c10::Device device) {
  constexpr auto kAll = static_cast<std::size_t>(c10::CachingAllocator::StatType::AGGREGATE);
  return at::accelerator::getDeviceStats(device.has_index() ? device.index() : 0)
      .allocated_bytes.at(kAll);
}

}  // namespace

MemoryMeter::MemoryMeter(c10::Device device) : device_(device) {
  if (device_.is_cpu()) {
    CountingAllocator& allocator = counting();
    usual_ = c10::GetCPUAllocator();
    c10::SetCPUAllocator(&allocator);
  } else {
    at::empty({1}, device_);  // a device's allocator has no statistics before its first use
  }
}

MemoryMeter::~MemoryMeter() {
  if (usual_ != nullptr) {
    c10::SetCPUAllocator(usual_);
  }
}

std::int64_t MemoryMeter::alive() const {
  return device_.is_cpu() ? counting().count().alive.load() : allocated_on(device_).current;
}

std::int64_t MemoryMeter::peak() const {
  return device_.is_cpu() ? counting().count().peak.load() : allocated_on(device_).peak;
}

void MemoryMeter::reset_peak() {
  if (device_.is_cpu()) {
    counting().count().peak = counting().count().alive.load();
  } else {
    at::accelerator::resetPeakStats(device_.has_index() ? device_.index() : 0);
  }
}

}  // namespace paperlab::experiments::mudd
