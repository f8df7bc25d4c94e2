#pragma once
// What a device is and what it can run. No CUDA header, so that every build can name it.

#include <cstdint>
#include <string>

#include "paperlab/core/error.h"

namespace paperlab::kernels {

// Of one device; zeros where it could not be asked.
struct DeviceFacts {
  int architecture = 0;            // 80 for compute capability 8.0 (sm_80)
  std::int64_t shared_memory = 0;  // bytes that a block may have at most
  std::string problem = {};        // why the device could not be asked; empty if it could
};

// What is known is kept for the process; a device that could not be asked is asked again.
DeviceFacts device_facts(int device);
DeviceFacts current_device_facts();

inline int device_architecture(int device) { return device_facts(device).architecture; }

// --- without CUDA --------------------------------------------------------------------------------

// What a launch may have without asking for more.
constexpr std::int64_t kPlainSharedMemory = 49152;

// What an answer of CUDA's runtime other than success says of a device. `driver`: the version of
// CUDA that the driver supports, 0 without one; text: CUDA's own words.
inline std::string device_problem(int driver, int num_devices, int device,
                                  const std::string& text) {
  if (driver == 0) {
    return "there is no CUDA driver";
  }
  if (num_devices >= 0 && device >= num_devices) {
    return num_devices == 0 ? "the CUDA driver finds no GPU"
                            : "the CUDA driver finds " + std::to_string(num_devices) + " of them";
  }
  return "CUDA says: " + text;
}

// Throws UnsupportedError if a block of `function` needs more shared memory than the device has.
inline void check_shared_memory(const char* function, std::int64_t bytes,
                                const DeviceFacts& device) {
  require<UnsupportedError>(
      bytes <= device.shared_memory || bytes <= kPlainSharedMemory, function,
      "the GPU must have " + std::to_string(bytes) + " bytes of shared memory for a block",
      std::to_string(device.shared_memory) +
          (device.problem.empty() ? "" : " (" + device.problem + ")"));
}

}  // namespace paperlab::kernels
