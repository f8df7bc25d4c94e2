// The matrix product on a GPU against the definition.

#include <gtest/gtest.h>

#include "kernels/common/cuda/device_buffer.h"
#include "paperlab/core/error.h"
#include "tests/kernels/gemm_cuda_cases.h"
#include "tests/support/gpu.h"

namespace paperlab::kernels {
namespace {

using test::Bytes;
using test::GemmCase;
using test::GemmMemory;

class GpuGemmTest : public test::GpuTest {};

// A case's memory on the device.
class OnDevice {
 public:
  explicit OnDevice(GemmMemory& memory)
      : a_(memory.a()),
        b_(memory.b()),
        bias_(memory.bias()),
        gate_(memory.gate()),
        residual_(memory.residual()),
        c_(memory.c()) {}

  GemmMemory::Pointers pointers() {
    return {a_.data(), b_.data(), bias_.data(), gate_.data(), residual_.data(), c_.data()};
  }
  Bytes run(const GemmMemory& memory) {
    const Gemm problem = memory.problem(pointers());
    DeviceBuffer<std::byte> workspace(static_cast<std::size_t>(gemm_cuda_workspace(problem)));
    gemm_cuda(problem, memory.epilogue(pointers()), workspace.data(), {});
    Bytes result(c_.size());
    c_.download(result, {});
    PAPERLAB_CUDA_CHECK(cudaStreamSynchronize(nullptr));
    return result;
  }

 private:
  using Buffer = DeviceBuffer<std::byte>;
  Buffer a_;
  Buffer b_;
  Buffer bias_;
  Buffer gate_;
  Buffer residual_;
  Buffer c_;
};

void expect_exact(const GemmCase& of) {
  GemmMemory memory(of);
  const auto exact = memory.exact();
  const Bytes first = OnDevice(memory).run(memory);
  EXPECT_EQ(first, OnDevice(memory).run(memory)) << of << ": other bits in another run";
  for (std::int64_t i = 0; i < of.m * memory.stride(); ++i) {
    const std::int64_t column = i % memory.stride();
    const double x = GemmMemory::number(first, memory.dtype_of_c(), i);
    if (column >= of.n) {
      ASSERT_TRUE(std::isnan(x)) << of << ": written behind a row";
      continue;
    }
    const auto at = static_cast<std::size_t>(i / memory.stride() * of.n + column);
    ASSERT_TRUE(std::fabs(x - exact.value[at]) <= exact.bound[at])
        << of << ": C[" << at << "] is " << x << ", exact " << exact.value[at] << " +- "
        << exact.bound[at];
  }
}

TEST_F(GpuGemmTest, EveryDTypeLayoutAndEpilogueIsWithinTheBound) {
  for (const test::GemmDType type : test::kGemmDTypes) {
    for (const std::int64_t size : {1, 7, 40}) {
      for (unsigned bits = 0; bits < 8; ++bits) {
        GemmCase of = {type.dtype, type.is_wide, size, 2 * size + 1, 3 * size - 1};
        of.a_has_contiguous_rows = (bits & 1U) != 0;
        of.b_has_contiguous_rows = (bits & 2U) != 0;
        of.gap = (bits & 4U) != 0 ? 3 : 0;
        for (const GemmCase& next : test::with_epilogues(of)) {
          expect_exact(next);
        }
      }
    }
  }
}

TEST_F(GpuGemmTest, AlignedSizesAreWithinTheBound) {
  for (const test::GemmDType type : test::kGemmDTypes) {
    for (const std::int64_t k : {0, 256, 4096}) {
      for (const GemmCase& of : test::with_epilogues({type.dtype, type.is_wide, 64, 128, k})) {
        expect_exact(of);
      }
    }
  }
}

// Whatever is missing, library, driver or device, is one error, again and again.
TEST(GemmWithoutGpuTest, IsAnErrorAndTheProcessGoesOn) {
  if (test::has_gpu()) {
    GTEST_SKIP() << "a machine with a GPU";
  }
  GemmMemory memory({DType::kFloat32, false, 2, 3, 4});
  for (int i = 0; i < 2; ++i) {
    EXPECT_THROW(
        gemm_cuda(memory.problem(memory.host()), memory.epilogue(memory.host()), nullptr, {}),
        Error);
  }
}

}  // namespace
}  // namespace paperlab::kernels
