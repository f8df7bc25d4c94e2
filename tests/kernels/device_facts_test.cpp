// What a device is asked, and what kernels that need much shared memory make of the answer.

#include <gtest/gtest.h>

#include <string>

#include "kernels/attention/cuda.h"
#include "kernels/common/cuda/architecture.h"
#include "tests/support/gpu.h"

namespace paperlab::kernels {
namespace {

constexpr DType kDTypes[] = {DType::kFloat32, DType::kBFloat16, DType::kFloat16, DType::kFloat64};

// Bytes that a block may have: sm_80 and sm_87, sm_86 and sm_89, sm_90.
DeviceFacts on(int architecture) {
  const bool is_small = architecture == 86 || architecture == 89;
  return {architecture, architecture == 90 ? 232448 : is_small ? 101376 : 166912, {}};
}

TEST(DeviceFactsTest, ProblemsSayWhatIsMissing) {
  EXPECT_EQ(device_problem(0, -1, 0, "text"), "there is no CUDA driver");
  EXPECT_EQ(device_problem(13000, 0, 0, "text"), "the CUDA driver finds no GPU");
  EXPECT_EQ(device_problem(13000, 2, 2, "text"), "the CUDA driver finds 2 of them");
  EXPECT_EQ(device_problem(13000, 2, 1, "out of memory"), "CUDA says: out of memory");
  EXPECT_EQ(device_problem(12000, -1, 0, "too old"), "CUDA says: too old");
}

// Asked twice: an answer that failed is not kept, and no error is left behind for the next call.
TEST(DeviceFactsTest, AMissingDeviceIsAnAnswer) {
  if constexpr (kHasCuda) {
    for (int i = 0; i < 2; ++i) {
      const DeviceFacts facts = device_facts(1000);
      EXPECT_EQ(facts.architecture, 0);
      EXPECT_EQ(facts.shared_memory, 0);
      EXPECT_NE(facts.problem, "");
      EXPECT_EQ(device_architecture(1000), 0);
    }
    EXPECT_EQ(current_device_facts().problem.empty(), test::has_gpu());
  }
}

TEST(SharedMemoryTest, TooLittleIsOneClearError) {
  EXPECT_NO_THROW(check_shared_memory("op_cuda", 101376, on(86)));
  EXPECT_NO_THROW(check_shared_memory("op_cuda", kPlainSharedMemory, DeviceFacts()));
  try {
    check_shared_memory("op_cuda", 116272, on(86));
    FAIL() << "nothing was thrown";
  } catch (const UnsupportedError& error) {
    EXPECT_EQ(std::string(error.what()),
              "op_cuda: the GPU must have 116272 bytes of shared memory for a block, got 101376");
  }
  DeviceFacts unknown;
  unknown.problem = "there is no CUDA driver";
  try {
    check_shared_memory("op_cuda", 50000, unknown);
    FAIL() << "nothing was thrown";
  } catch (const UnsupportedError& error) {
    EXPECT_NE(std::string(error.what()).find("got 0 (there is no CUDA driver)"), std::string::npos);
  }
}

TEST(SharedMemoryTest, AttentionForwardFitsOnEveryGpu) {
  for (const DType dtype : kDTypes) {
    for (std::int64_t head_dim = 1; head_dim <= 256; ++head_dim) {
      EXPECT_LE(attention_cuda_shared_memory(dtype, head_dim), on(86).shared_memory);
    }
  }
}

// Beyond 128 columns, and in float64, the gradients are for sm_80, sm_87 and sm_90.
TEST(SharedMemoryTest, AttentionBackwardFitsOnSmallGpusUpTo128Columns) {
  for (const DType dtype : kDTypes) {
    for (std::int64_t head_dim = 1; head_dim <= 256; ++head_dim) {
      const std::int64_t bytes = attention_backward_cuda_shared_memory(dtype, head_dim);
      EXPECT_LE(bytes, on(80).shared_memory);
      EXPECT_EQ(bytes <= on(89).shared_memory, head_dim <= 128 && dtype != DType::kFloat64)
          << head_dim << ": " << bytes;
    }
  }
}

}  // namespace
}  // namespace paperlab::kernels
