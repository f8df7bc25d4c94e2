#pragma once
// Tests that need a GPU.

#include <gtest/gtest.h>

#include "kernels/common/backend.h"
#include "kernels/common/cuda/context.h"

namespace paperlab::test {

inline bool has_gpu() {
  if constexpr (kernels::kHasCuda) {
    return kernels::has_usable_gpu();
  }
  return false;
}

// Why a test cannot run here.
inline const char* missing_gpu() {
  return kernels::kHasCuda ? "no GPU that runs this build's kernels" : "a build without CUDA";
}

// A suite whose tests are skipped without a GPU.
class GpuTest : public testing::Test {
 protected:
  void SetUp() override {
    if (!has_gpu()) {
      GTEST_SKIP() << missing_gpu();
    }
  }
};

}  // namespace paperlab::test
