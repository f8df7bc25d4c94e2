#pragma once
// The backend of operators for as long as a test needs it.

#include "paperlab/ops/backend.h"

namespace paperlab::ops::test {

class WithBackend {
 public:
  explicit WithBackend(Backend wanted) { set_backend(wanted); }
  ~WithBackend() { set_backend(before_); }
  WithBackend(const WithBackend&) = delete;
  WithBackend& operator=(const WithBackend&) = delete;

 private:
  Backend before_ = backend();
};

}  // namespace paperlab::ops::test
