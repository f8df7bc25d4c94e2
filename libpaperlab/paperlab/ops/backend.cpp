#include "paperlab/ops/backend.h"

#include <c10/util/Exception.h>

#include <array>
#include <atomic>
#include <cstdlib>

namespace paperlab::ops {
namespace {

constexpr std::array kBackends = {Backend::kAuto, Backend::kKernels, Backend::kPortable,
                                  Backend::kTorch};
constexpr int kNotChosen = -1;

std::atomic<int>& chosen() {
  static std::atomic<int> value = kNotChosen;
  return value;
}

std::atomic<NoticeHandler>& notice_handler() {
  static std::atomic<NoticeHandler> handler = nullptr;
  return handler;
}

Backend of_environment() {
  const char* name = std::getenv("PAPERLAB_BACKEND");
  return name == nullptr || *name == '\0' ? Backend::kAuto
                                          : backend_of_name("PAPERLAB_BACKEND", name);
}

}  // namespace

// A variable that is refused is read again at the next call: it is never passed over in silence.
Backend backend() {
  const int now = chosen().load(std::memory_order_relaxed);
  if (now != kNotChosen) {
    return static_cast<Backend>(now);
  }
  int before = kNotChosen;
  const Backend wanted = of_environment();
  const bool is_first = chosen().compare_exchange_strong(before, static_cast<int>(wanted));
  return is_first ? wanted : static_cast<Backend>(before);
}

void set_backend(Backend backend) { chosen() = static_cast<int>(backend); }

void set_notice_handler(NoticeHandler handler) { notice_handler() = handler; }

void give_notice(const std::string& notice) {
  const NoticeHandler handler = notice_handler().load();
  if (handler == nullptr) {
    TORCH_WARN(notice);
  } else {
    handler(notice);
  }
}

const char* backend_name(Backend backend) {
  switch (backend) {
    case Backend::kKernels:
      return "kernels";
    case Backend::kPortable:
      return "portable";
    case Backend::kTorch:
      return "torch";
    case Backend::kAuto:
      break;
  }
  return "auto";
}

Backend backend_of_name(const char* what, const std::string& name) {
  for (const Backend backend : kBackends) {
    if (name == backend_name(backend)) {
      return backend;
    }
  }
  C10_THROW_ERROR(
      ValueError,
      c10::str(what, " must be one of auto, kernels, portable, torch, got '", name, "'"));
}

}  // namespace paperlab::ops
