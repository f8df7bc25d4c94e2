#pragma once
// Bytes of tensors that are alive on a device, and the most that were at a time.

#include <c10/core/Allocator.h>
#include <c10/core/Device.h>

#include <cstdint>

namespace paperlab::experiments::mudd {

// On the CPU every allocation is counted while a meter lives, one meter at a time; elsewhere the
// device's allocator counts.
class MemoryMeter {
 public:
  explicit MemoryMeter(c10::Device device);
  ~MemoryMeter();
  MemoryMeter(const MemoryMeter&) = delete;
  MemoryMeter& operator=(const MemoryMeter&) = delete;

  std::int64_t alive() const;
  std::int64_t peak() const;  // since reset_peak()
  void reset_peak();

 private:
  c10::Device device_;
  c10::Allocator* usual_ = nullptr;
};

}  // namespace paperlab::experiments::mudd
