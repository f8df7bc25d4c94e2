#include <ATen/ops/empty.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <c10/util/Exception.h>

#include <mutex>
#include <set>
#include <string>

#include "kernels/common/backend.h"
#include "kernels/common/cuda/architecture.h"
#include "paperlab/ops/backend.h"
#include "paperlab/ops/cuda_kernels_internal.h"
#include "paperlab/ops/route_internal.h"
#include "paperlab/ops/route_rules_internal.h"

namespace paperlab::ops {
namespace {

kernels::DeviceFacts facts_of(const at::Tensor& x) {
  if constexpr (kernels::kHasCuda) {
    return kernels::device_facts(x.device().index());
  }
  return {};
}

// Whether this is the first call for `op`.
bool is_first_notice(const std::string& op) {
  static std::mutex mutex;
  static std::set<std::string> noticed;
  const std::lock_guard lock(mutex);
  return noticed.insert(op).second;
}

void notice(const char* op, const std::string& reason) {
  if (is_first_notice(op)) {
    give_notice(c10::str(
        "paperlab::", op, ": CUDA tensors are left to LibTorch's operations, because ", reason,
        ". paperlab.ops.set_backend(\"torch\") asks for that without this notice."));
  }
}

// With what the device said.
std::string reason_of(const CudaRoute& choice, const kernels::DeviceFacts& facts,
                      std::int64_t shared_memory) {
  if (!facts.problem.empty()) {
    return c10::str(choice.reason, ": ", facts.problem);
  }
  return choice.lacks_memory ? c10::str(choice.reason, " (", shared_memory, " bytes, it has ",
                                        facts.shared_memory, ")")
                             : choice.reason;
}

}  // namespace

Route route_of(const char* op, const at::Tensor& x, const char* argument, bool kernel_takes_dtype,
               std::int64_t shared_memory) {
  const c10::DeviceType device = x.device().type();
  TORCH_CHECK_VALUE(device == c10::DeviceType::CPU || device == c10::DeviceType::CUDA, op, ": ",
                    argument, " must be on the CPU or a CUDA device, got ", x.device());
  const Backend wanted = backend();
  if (wanted == Backend::kTorch) {
    return Route::kTorch;
  }
  if (device == c10::DeviceType::CPU) {
    return Route::kCpu;
  }
  const CudaKernel kernel = cuda_kernel_of(op);
  const bool asks = kernels::kHasCuda && kernel.is_wired && kernel_takes_dtype;
  const kernels::DeviceFacts facts = asks ? facts_of(x) : kernels::DeviceFacts();
  const bool fits = shared_memory <= facts.shared_memory;
  const CudaRoute choice =
      cuda_route(wanted, kernel, kernels::kHasCuda, kernel_takes_dtype, facts.architecture, fits);
  TORCH_CHECK_VALUE(!choice.is_refused, op, ": ", argument,
                    " must be on a GPU of sm_80 to sm_89 or sm_90 for the backend \"",
                    backend_name(wanted), "\", got ", x.device(),
                    facts.problem.empty() ? c10::str(" (sm_", facts.architecture, ")")
                                          : c10::str(", which cannot be asked: ", facts.problem));
  if (choice.route == Route::kTorch) {
    notice(op, reason_of(choice, facts, shared_memory));
  }
  return choice.route;
}

kernels::Context context_of(const at::Tensor& x) {
  const c10::impl::VirtualGuardImpl device(x.device().type());
  const c10::Stream stream = device.getStream(x.device());
  return {static_cast<CUstream_st*>(device.getStreamNativeHandle(stream)),
          backend() == Backend::kPortable};
}

at::Tensor workspace(std::int64_t bytes, const at::Tensor& like) {
  return at::empty({bytes}, like.options().dtype(at::kByte));
}

}  // namespace paperlab::ops
