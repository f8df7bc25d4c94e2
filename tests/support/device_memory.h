#pragma once
// Host memory's copy on the GPU, for tests. Compiled in builds with CUDA alone.

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/common/cuda/device_buffer.h"

namespace paperlab::test {

class DeviceMemory {
 public:
  explicit DeviceMemory(const std::vector<std::span<std::byte>>& host) {
    for (const std::span<std::byte> memory : host) {
      copies_.push_back({memory, Buffer(std::span<const std::byte>(memory))});
    }
  }

  // An address in one of the host's pieces becomes that of its copy; others stay, null too.
  template <class T>
  void move(T*& pointer) {
    const auto address = reinterpret_cast<std::uintptr_t>(pointer);
    for (Copy& copy : copies_) {
      const auto first = reinterpret_cast<std::uintptr_t>(copy.host.data());
      if (!copy.host.empty() && address >= first && address < first + copy.host.size()) {
        std::byte* device = copy.device.data() + (address - first);
        pointer = reinterpret_cast<T*>(device);
        return;
      }
    }
  }

  // Waits for the device; the host's pieces become what the copies are.
  void download() {
    for (Copy& copy : copies_) {
      copy.device.download(copy.host, {});
    }
    PAPERLAB_CUDA_CHECK(cudaStreamSynchronize(nullptr));
  }

 private:
  using Buffer = kernels::DeviceBuffer<std::byte>;
  struct Copy {
    std::span<std::byte> host;
    Buffer device;
  };

  std::vector<Copy> copies_;
};

// Memory of the device whose bytes are 0xFF, NaN in every dtype.
inline kernels::DeviceBuffer<std::byte> nan_workspace(std::int64_t bytes) {
  const std::vector<std::byte> nans(static_cast<std::size_t>(bytes), std::byte{0xFF});
  return kernels::DeviceBuffer<std::byte>(std::span<const std::byte>(nans));
}

}  // namespace paperlab::test
