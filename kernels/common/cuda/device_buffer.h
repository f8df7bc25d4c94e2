#pragma once
// Owned memory of the current CUDA device.

#include <cstddef>
#include <span>
#include <utility>

#include "kernels/common/cuda/check.cuh"
#include "kernels/common/cuda/context.h"

namespace paperlab::kernels {

template <class T>
class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  // Not initialized.
  explicit DeviceBuffer(std::size_t size) : size_(size) {
    if (size_ > 0) {
      void* memory = nullptr;
      PAPERLAB_CUDA_CHECK(cudaMalloc(&memory, size_ * sizeof(T)));
      data_ = static_cast<T*>(memory);
    }
  }
  // Holds a copy of `from`.
  explicit DeviceBuffer(std::span<const T> from) : DeviceBuffer(from.size()) {
    upload(from, {});
    PAPERLAB_CUDA_CHECK(cudaStreamSynchronize(nullptr));
  }
  DeviceBuffer(DeviceBuffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  DeviceBuffer& operator=(DeviceBuffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  DeviceBuffer(const DeviceBuffer&) = delete;
  DeviceBuffer& operator=(const DeviceBuffer&) = delete;
  ~DeviceBuffer() { cudaFree(data_); }

  T* data() { return data_; }
  const T* data() const { return data_; }
  std::size_t size() const { return size_; }

  // Asynchronous copies of the first elements; `from` and `to` must outlive them.
  void upload(std::span<const T> from, const Context& context) {
    check_size(from.size());
    PAPERLAB_CUDA_CHECK(cudaMemcpyAsync(data_, from.data(), from.size_bytes(),
                                        cudaMemcpyHostToDevice, context.stream));
  }
  void download(std::span<T> to, const Context& context) const {
    check_size(to.size());
    PAPERLAB_CUDA_CHECK(
        cudaMemcpyAsync(to.data(), data_, to.size_bytes(), cudaMemcpyDeviceToHost, context.stream));
  }

 private:
  void check_size(std::size_t count) const {
    require<ShapeError>(count <= size_, "device_buffer",
                        "at most " + std::to_string(size_) + " elements", std::to_string(count));
  }

  T* data_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace paperlab::kernels
