#include "paperlab/ops/device.h"

#include <ATen/Context.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <dlfcn.h>

#include <filesystem>
#include <string>

#include "paperlab/core/error.h"

namespace paperlab::ops {
namespace {

// The file of that name in the folder of LibTorch's part for the CPU.
std::string beside_libtorch(const char* name) {
  Dl_info info{};
  const auto* address = reinterpret_cast<const void*>(&at::globalContext);
  if (dladdr(address, &info) == 0 || info.dli_fname == nullptr) {
    return name;
  }
  return std::filesystem::path(info.dli_fname).parent_path() / name;
}

// Why LibTorch's part for CUDA is not there; empty if it is.
std::string problem_with_loading() {
  if (c10::impl::hasDeviceGuardImpl(c10::DeviceType::CUDA)) {
    return {};
  }
  const std::string path = beside_libtorch("libtorch_cuda.so");
  std::error_code error;
  if (!std::filesystem::exists(path, error)) {
    return "this torch was built without CUDA";
  }
  if (dlopen(path.c_str(), RTLD_NOW | RTLD_GLOBAL) == nullptr) {
    const char* reason = dlerror();
    return reason == nullptr ? path + " cannot be loaded" : reason;
  }
  return {};
}

}  // namespace

void require_device(const c10::Device& device) {
  if (device.is_cpu()) {
    return;
  }
  if (!device.is_cuda()) {
    throw UnsupportedError("device " + device.str() + " must be cpu or cuda");
  }
  std::string problem = problem_with_loading();
  if (problem.empty()) {
    const c10::DeviceIndex count =
        c10::impl::getDeviceGuardImpl(c10::DeviceType::CUDA)->deviceCount();
    if (count == 0) {
      problem = "torch finds none";
    } else if (device.index() >= count) {
      problem = "torch finds " + std::to_string(count);
    }
  }
  if (!problem.empty()) {
    throw UnsupportedError("device " + device.str() +
                           " needs an NVIDIA GPU that torch can use: " + problem);
  }
}

}  // namespace paperlab::ops
