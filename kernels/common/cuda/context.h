#pragma once
// Where CUDA work goes. No CUDA header, so that every build can name it.

struct CUstream_st;

namespace paperlab::kernels {

// Kernels are asynchronous on `stream` (null: the default stream); nothing inside waits for it.
struct Context {
  CUstream_st* stream = nullptr;
  bool is_portable = false;  // without what one architecture alone has, for comparisons
};

// Whether the current device runs the kernels of this build. Without a driver or a device: false.
bool has_usable_gpu();

}  // namespace paperlab::kernels
