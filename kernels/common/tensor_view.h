#pragma once
// Views of tensors that a kernel reads or writes; they own nothing.

#include <cstdint>

namespace paperlab::kernels {

// kFloat16: kernels of the GPU and references only; the CPU's refuse it.
enum class DType : std::uint8_t { kFloat32, kBFloat16, kFloat64, kFloat16 };

// A bfloat16 number by its bits: the upper half of a float32.
struct BFloat16 {
  std::uint16_t bits;
};

// An IEEE 754 binary16 number by its bits.
struct Float16 {
  std::uint16_t bits;
};

// Four dimensions with strides in elements; the last dimension is contiguous (stride[3] == 1)
// unless a kernel says otherwise. No data and sizes of zero: absent.
template <class Void>
struct BasicTensorView {
  Void* data = nullptr;
  DType dtype = DType::kFloat32;
  std::int64_t size[4] = {0, 0, 0, 0};
  std::int64_t stride[4] = {0, 0, 0, 1};
};

using TensorView = BasicTensorView<void>;
using ConstTensorView = BasicTensorView<const void>;

}  // namespace paperlab::kernels
