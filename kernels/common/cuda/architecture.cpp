#include "kernels/common/cuda/architecture.h"

#include <cuda_runtime_api.h>

#include <map>
#include <mutex>

namespace paperlab::kernels {
namespace {

std::string problem_of(cudaError_t status, int device) {
  int driver = 0;
  int count = 0;
  if (cudaDriverGetVersion(&driver) != cudaSuccess) {
    driver = 0;
  }
  if (cudaGetDeviceCount(&count) != cudaSuccess) {
    count = -1;
  }
  return device_problem(driver, status == cudaErrorNoDevice ? 0 : count, device,
                        cudaGetErrorString(status));
}

DeviceFacts asked(int device) {
  int major = 0;
  int minor = 0;
  int shared_memory = 0;
  cudaError_t status = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  if (status == cudaSuccess) {
    status = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  }
  if (status == cudaSuccess) {
    status =
        cudaDeviceGetAttribute(&shared_memory, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  }
  DeviceFacts facts;
  if (status == cudaSuccess) {
    facts.architecture = 10 * major + minor;
    facts.shared_memory = shared_memory;
  } else {
    facts.problem = problem_of(status, device);
  }
  cudaGetLastError();  // a missing device is an answer, not an error of the next call
  return facts;
}

}  // namespace

DeviceFacts device_facts(int device) {
  static std::mutex mutex;
  static std::map<int, DeviceFacts> known;
  const std::lock_guard lock(mutex);
  const auto found = known.find(device);
  if (found != known.end()) {
    return found->second;
  }
  DeviceFacts facts = asked(device);
  if (facts.problem.empty()) {
    known.emplace(device, facts);
  }
  return facts;
}

DeviceFacts current_device_facts() {
  int device = 0;
  const cudaError_t status = cudaGetDevice(&device);
  if (status != cudaSuccess) {
    cudaGetLastError();
    return {0, 0, problem_of(status, 0)};
  }
  return device_facts(device);
}

}  // namespace paperlab::kernels
