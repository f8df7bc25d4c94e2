#pragma once
// What a device can run. No CUDA header, so that every build can name it.

namespace paperlab::kernels {

// 80 for a GPU of compute capability 8.0 (sm_80); 0 without a driver or without that device.
int device_architecture(int device);

}  // namespace paperlab::kernels
