#pragma once
// Numbers of a kernel's test: any dtype, NaN until they are set, at any alignment.

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels/common/number.h"
#include "paperlab/core/rng.h"

namespace paperlab::test {

inline std::int64_t bytes_of(kernels::DType dtype) {
  return dtype == kernels::DType::kFloat64 ? 8 : dtype == kernels::DType::kFloat32 ? 4 : 2;
}

// Half a unit in the last place of a number of that dtype relative to the number, or 0 where the
// arithmetic's own roundings are as large; and half the distance of the smallest numbers, which
// matters in float16 alone.
inline double half_ulp(kernels::DType dtype) {
  return dtype == kernels::DType::kBFloat16  ? 0x1p-8
         : dtype == kernels::DType::kFloat16 ? 0x1p-11
                                             : 0.0;
}
inline double half_step(kernels::DType dtype) {
  return dtype == kernels::DType::kFloat16 ? 0x1p-25 : 0.0;
}

// Of the arithmetic.
inline double epsilon(kernels::DType dtype) {
  return dtype == kernels::DType::kFloat64 ? 0x1p-52 : 0x1p-23;
}

// `count` numbers that begin `offset` elements behind a multiple of 16 bytes, and kBehind behind
// them. Bytes are 0xFF, which is NaN in every dtype, until they are set.
class RowTensor {
 public:
  static constexpr std::int64_t kBehind = 16;

  RowTensor() = default;
  RowTensor(kernels::DType dtype, std::int64_t count, std::int64_t offset = 0)
      : dtype_(dtype),
        count_(count),
        offset_(offset),
        bytes_(static_cast<std::size_t>((offset + count + kBehind) * bytes_of(dtype)),
               std::byte{0xFF}) {}

  RowTensor& randomize(std::uint64_t stream, double scale = 1.0) {
    for (std::int64_t i = 0; i < count_; ++i) {
      set(i, scale * philox_normal(7, stream, static_cast<std::uint64_t>(i)));
    }
    return *this;
  }

  void* data() { return bytes_.data() + offset_ * bytes_of(dtype_); }
  const void* data() const { return bytes_.data() + offset_ * bytes_of(dtype_); }
  kernels::DType dtype() const { return dtype_; }
  std::int64_t count() const { return count_; }
  double at(std::int64_t i) const { return kernels::load_number(data(), dtype_, i); }
  void set(std::int64_t i, double value) { kernels::store_number(data(), dtype_, i, value); }
  std::vector<double> values() const {
    std::vector<double> all(static_cast<std::size_t>(count_));
    for (std::int64_t i = 0; i < count_; ++i) {
      all[static_cast<std::size_t>(i)] = at(i);
    }
    return all;
  }

  // All memory, and where the numbers begin in it.
  std::vector<std::byte>& bytes() { return bytes_; }
  const std::vector<std::byte>& bytes() const { return bytes_; }
  std::int64_t first_byte() const { return offset_ * bytes_of(dtype_); }
  bool has_untouched_ends() const {
    for (std::int64_t i = -offset_; i < count_ + kBehind; ++i) {
      if ((i < 0 || i >= count_) && !std::isnan(at(i))) {
        return false;
      }
    }
    return true;
  }

  bool operator==(const RowTensor& other) const { return bytes_ == other.bytes_; }

 private:
  kernels::DType dtype_ = kernels::DType::kFloat32;
  std::int64_t count_ = 0;
  std::int64_t offset_ = 0;
  std::vector<std::byte> bytes_;
};

}  // namespace paperlab::test
