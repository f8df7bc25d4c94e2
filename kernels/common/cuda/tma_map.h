#pragma once
// Tensor maps from the driver. Host code of builds with CUDA, but for the text.

#include <cstdio>
#include <string>

#include "kernels/common/cuda/tma.h"

namespace paperlab::kernels {

// The map of a tensor in the current device's memory, whose address is a multiple of 16. The driver
// is asked for the function when it is first needed, so that nothing links to it. Throws CudaError.
TensorMap tensor_map(const BoxTensor& tensor);

// All that the driver is told of a tensor, for errors.
inline std::string text_of(const BoxTensor& tensor) {
  const auto joined = [](const std::uint64_t* number, int count) {
    std::string text;
    for (int i = 0; i < count; ++i) {
      text += (i == 0 ? "" : ", ") + std::to_string(number[i]);
    }
    return "[" + text + "]";
  };
  char address[32];
  std::snprintf(address, sizeof(address), "0x%llx",
                static_cast<unsigned long long>(reinterpret_cast<std::uintptr_t>(tensor.data)));
  return std::string(tensor.dtype == DType::kBFloat16 ? "bfloat16" : "float16") + " of sizes " +
         joined(tensor.size, 4) + " (columns, rows, heads, batch) at " + address +
         " with strides of " + joined(tensor.stride, 3) + " bytes in boxes of " +
         std::to_string(tensor.box_rows) + " rows";
}

}  // namespace paperlab::kernels
