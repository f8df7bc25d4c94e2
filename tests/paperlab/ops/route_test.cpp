#include "paperlab/ops/route_internal.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/zeros.h>
#include <c10/core/StorageImpl.h>
#include <c10/core/TensorImpl.h>
#include <c10/util/Exception.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "paperlab/ops/attention.h"
#include "paperlab/ops/backend.h"
#include "paperlab/ops/even_pairs_loss.h"
#include "paperlab/ops/linear.h"
#include "paperlab/ops/linear_cross_entropy.h"
#include "paperlab/ops/rms_norm.h"
#include "paperlab/ops/rope.h"
#include "paperlab/ops/route_rules_internal.h"
#include "paperlab/ops/swiglu.h"

namespace paperlab::ops {
namespace {

constexpr CudaKernel kUnwired = {"op", false, false, false};
constexpr CudaKernel kUnverified = {"op", true, false, false};
constexpr CudaKernel kOnHopper = {"op", true, false, true};
constexpr CudaKernel kOnAmpere = {"op", true, true, false};

Route by_default(const CudaKernel& kernel, int architecture) {
  return cuda_route(Backend::kAuto, kernel, true, true, architecture).route;
}

TEST(CudaRouteTest, ByDefaultAKernelRunsWhereItWasSeenToPass) {
  for (const int ampere : {80, 86, 89}) {
    EXPECT_EQ(by_default(kOnAmpere, ampere), Route::kCuda);
    EXPECT_EQ(by_default(kOnHopper, ampere), Route::kTorch);
  }
  EXPECT_EQ(by_default(kOnHopper, 90), Route::kCuda);
  EXPECT_EQ(by_default(kOnAmpere, 90), Route::kTorch);
  for (const int architecture : {0, 75, 80, 90, 100}) {
    EXPECT_EQ(by_default(kUnverified, architecture), Route::kTorch);
    EXPECT_EQ(by_default(kUnwired, architecture), Route::kTorch);
  }
}

TEST(CudaRouteTest, KernelsMayBeAskedFor) {
  for (const Backend wanted : {Backend::kKernels, Backend::kPortable}) {
    for (const int architecture : {80, 86, 90}) {
      EXPECT_EQ(cuda_route(wanted, kUnverified, true, true, architecture).route, Route::kCuda);
    }
    for (const int architecture : {0, 75, 91, 100, 120}) {
      EXPECT_TRUE(cuda_route(wanted, kUnverified, true, true, architecture).is_refused);
    }
  }
  for (const int architecture : {0, 75, 91, 100, 120}) {
    EXPECT_FALSE(cuda_route(Backend::kAuto, kOnHopper, true, true, architecture).is_refused);
    EXPECT_EQ(by_default(kOnHopper, architecture), Route::kTorch);
  }
}

TEST(CudaRouteTest, WithoutAKernelItIsLibTorch) {
  for (const Backend wanted : {Backend::kAuto, Backend::kKernels, Backend::kPortable}) {
    for (const CudaRoute& route : {cuda_route(wanted, kOnHopper, false, true, 90),
                                   cuda_route(wanted, kUnwired, true, true, 90),
                                   cuda_route(wanted, kOnHopper, true, false, 90)}) {
      EXPECT_EQ(route.route, Route::kTorch);
      EXPECT_FALSE(route.is_refused);
      EXPECT_NE(std::string(route.reason), "");
    }
  }
}

TEST(CudaRouteTest, BlocksThatDoNotFitAreLeftToLibTorch) {
  for (const Backend wanted : {Backend::kAuto, Backend::kKernels, Backend::kPortable}) {
    const CudaRoute route = cuda_route(wanted, kOnAmpere, true, true, 86, /*fits=*/false);
    EXPECT_EQ(route.route, Route::kTorch);
    EXPECT_FALSE(route.is_refused);
    EXPECT_TRUE(route.lacks_memory);
    EXPECT_TRUE(cuda_route(wanted, kOnAmpere, true, true, 80).route == Route::kCuda);
    EXPECT_FALSE(cuda_route(wanted, kOnAmpere, true, true, 75, /*fits=*/false).lacks_memory);
  }
}

TEST(CudaRouteTest, OperatorsHaveOneRow) {
  for (const CudaKernel& kernel : kCudaKernels) {
    int count = 0;
    for (const CudaKernel& other : kCudaKernels) {
      count += other.op == kernel.op ? 1 : 0;
    }
    EXPECT_EQ(count, 1) << kernel.op;
    EXPECT_TRUE(kernel.is_wired || (!kernel.verified_sm_80 && !kernel.verified_sm_90));
    EXPECT_EQ(cuda_kernel_of(kernel.op).is_wired, kernel.is_wired);
  }
  EXPECT_FALSE(cuda_kernel_of("none").is_wired);
}

class ScopedBackend {
 public:
  explicit ScopedBackend(Backend wanted) : before_(backend()) { set_backend(wanted); }
  ~ScopedBackend() { set_backend(before_); }
  ScopedBackend(const ScopedBackend&) = delete;
  ScopedBackend& operator=(const ScopedBackend&) = delete;

 private:
  Backend before_;
};

class Warnings final : public c10::WarningHandler {
 public:
  void process(const c10::Warning& warning) override { texts.push_back(warning.msg()); }
  std::vector<std::string> texts;
};

// A tensor that says it is on another device; its data, which nobody may touch, is the CPU's.
at::Tensor elsewhere(c10::Device device, c10::DispatchKey key, at::IntArrayRef sizes,
                     at::ScalarType dtype = at::kFloat) {
  const std::int64_t bytes =
      c10::multiply_integers(sizes) * static_cast<std::int64_t>(c10::elementSize(dtype));
  const auto memory = std::make_shared<std::vector<char>>(static_cast<std::size_t>(bytes));
  auto* owner = new std::shared_ptr<std::vector<char>>(memory);
  c10::DataPtr data(
      memory->data(), owner,
      [](void* p) { delete static_cast<std::shared_ptr<std::vector<char>>*>(p); }, device);
  auto storage = c10::make_intrusive<c10::StorageImpl>(
      c10::StorageImpl::use_byte_size_t(), bytes, std::move(data), /*allocator=*/nullptr, false);
  auto impl = c10::make_intrusive<c10::TensorImpl>(
      c10::Storage(std::move(storage)), c10::DispatchKeySet(key), c10::scalarTypeToTypeMeta(dtype));
  impl->set_sizes_contiguous(sizes);
  return at::Tensor(std::move(impl));
}

at::Tensor on_cuda(at::IntArrayRef sizes) {
  return elsewhere(c10::Device(c10::DeviceType::CUDA, 0), c10::DispatchKey::CUDA, sizes);
}

at::Tensor on_other(at::IntArrayRef sizes, at::ScalarType dtype = at::kFloat) {
  return elsewhere(c10::Device(c10::DeviceType::PrivateUse1, 0), c10::DispatchKey::PrivateUse1,
                   sizes, dtype);
}

TEST(RouteTest, TheCpuHasOurKernelsUnlessLibTorchIsAskedFor) {
  const at::Tensor x = at::zeros({2});
  for (const Backend wanted : {Backend::kAuto, Backend::kKernels, Backend::kPortable}) {
    const ScopedBackend scoped(wanted);
    EXPECT_EQ(route_of("route_test", x), Route::kCpu);
  }
  const ScopedBackend scoped(Backend::kTorch);
  EXPECT_EQ(route_of("route_test", x), Route::kTorch);
}

TEST(RouteTest, ANoticeIsGivenOnceForEachOperator) {
  Warnings warnings;
  const c10::WarningUtils::WarningHandlerGuard guard(&warnings);
  const at::Tensor x = on_cuda({2});
  {
    const ScopedBackend scoped(Backend::kTorch);
    EXPECT_EQ(route_of("first", x), Route::kTorch);
    EXPECT_TRUE(warnings.texts.empty());
  }
  const ScopedBackend scoped(Backend::kAuto);
  for (const char* op : {"first", "first", "second", "first", "second"}) {
    EXPECT_EQ(route_of(op, x), Route::kTorch);
  }
  ASSERT_EQ(warnings.texts.size(), 2U);
  EXPECT_NE(warnings.texts[0].find("paperlab::first: CUDA tensors are left to LibTorch"),
            std::string::npos)
      << warnings.texts[0];
  EXPECT_NE(warnings.texts[1].find("paperlab::second"), std::string::npos);
}

template <class F>
void expect_refused(const char* message, F call) {
  for (const Backend wanted :
       {Backend::kAuto, Backend::kKernels, Backend::kPortable, Backend::kTorch}) {
    const ScopedBackend scoped(wanted);
    try {
      call();
      ADD_FAILURE() << "nothing was thrown, but " << message;
    } catch (const c10::ValueError& error) {
      const std::string text = error.what_without_backtrace();
      EXPECT_EQ(text, std::string(message) +
                          " must be on the CPU or a CUDA device, got "
                          "privateuseone:0");
    }
  }
}

// With kernels and without a GPU: what is wrong is named, in the error and in the notice.
TEST(RouteTest, ADeviceThatCannotBeAskedIsRefusedWithTheReason) {
  const std::string before =
      "rms_norm: x must be on a GPU of sm_80 to sm_89 or sm_90 for the backend \"kernels\", got "
      "cuda:0, which cannot be asked: ";
  const at::Tensor x = on_cuda({2});
  std::string problem;
  try {
    const ScopedBackend scoped(Backend::kKernels);
    route_of("rms_norm", x);
  } catch (const c10::ValueError& error) {
    const std::string text = error.what_without_backtrace();
    if (text.find("cannot be asked") != std::string::npos) {
      ASSERT_EQ(text.substr(0, before.size()), before);
      problem = text.substr(before.size());
    }
  }
  if (problem.empty()) {
    GTEST_SKIP() << "a build without kernels, or a GPU";
  }
  Warnings warnings;
  const c10::WarningUtils::WarningHandlerGuard guard(&warnings);
  const ScopedBackend scoped(Backend::kAuto);
  EXPECT_EQ(route_of("swiglu", x), Route::kTorch);
  ASSERT_EQ(warnings.texts.size(), 1U);
  EXPECT_NE(warnings.texts[0].find("could not be asked for its architecture: " + problem),
            std::string::npos)
      << warnings.texts[0];
}

TEST(RouteTest, OtherDevicesAreRefusedByName) {
  const at::Tensor x = on_other({2, 4});
  const at::Tensor heads = on_other({1, 2, 3, 4});
  const at::Tensor table = on_other({1, 2, 2});
  const at::Tensor target = on_other({2}, at::kLong);
  expect_refused("op: x", [&] { route_of("op", x); });
  expect_refused("rms_norm: x", [&] { rms_norm(x, on_other({4})); });
  expect_refused("swiglu: gate", [&] { swiglu(x, x); });
  expect_refused("rope: x", [&] { rope(heads, table, table); });
  expect_refused("linear: x", [&] { ops::linear(x, x); });
  expect_refused("attention: query", [&] { attention(heads, heads, heads); });
  expect_refused("even_pairs_loss: u",
                 [&] { even_pairs_loss(on_other({2}), on_other({2, 2}), 2.0); });
  expect_refused("linear_cross_entropy: x", [&] { linear_cross_entropy(x, x, target); });
}

TEST(RouteTest, AWorkspaceLiesWhereTheTensorDoes) {
  const at::Tensor memory = workspace(100, at::zeros({3}, at::kBFloat16));
  EXPECT_EQ(memory.scalar_type(), at::kByte);
  EXPECT_EQ(memory.numel(), 100);
  EXPECT_TRUE(memory.device().is_cpu());
}

TEST(BackendTest, NamesAreThoseOfTheContract) {
  for (const char* name : {"auto", "kernels", "portable", "torch"}) {
    EXPECT_STREQ(backend_name(backend_of_name("name", name)), name);
  }
  for (const char* name : {"", "cuda", "Auto", "torch "}) {
    EXPECT_THROW(backend_of_name("name", name), c10::ValueError);
  }
}

}  // namespace
}  // namespace paperlab::ops
