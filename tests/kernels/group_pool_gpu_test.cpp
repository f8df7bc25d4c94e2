// Pooling on a GPU. Compiled in builds with CUDA alone.

#include <gtest/gtest.h>

#include "kernels/group_pool/cuda.h"
#include "paperlab/core/error.h"
#include "tests/kernels/group_pool_cases.h"
#include "tests/support/device_memory.h"
#include "tests/support/gpu.h"

namespace paperlab::kernels {
namespace {

using test::DeviceMemory;
using test::GuardedTensor;
using test::PoolTensors;

class GpuGroupPoolTest : public test::GpuTest {};

void run(PoolTensors& tensors) {
  GroupPoolInputs in = tensors.inputs();
  GroupPoolOutputs out = tensors.outputs();  // these fill with NaN, so they come before the copies
  GroupPoolGradients of = tensors.gradients();
  std::vector<std::span<std::byte>> host = {std::as_writable_bytes(std::span(tensors.starts))};
  for (GuardedTensor* tensor :
       {&tensors.query, &tensors.key, &tensors.value, &tensors.grad_core_key,
        &tensors.grad_core_value, &tensors.core_key, &tensors.core_value, &tensors.grad_query,
        &tensors.grad_key, &tensors.grad_value}) {
    host.push_back(tensor->memory());
  }
  DeviceMemory device(host);
  device.move(in.start);
  for (ConstTensorView* view : {&in.query, &in.key, &in.value, &of.grad_key, &of.grad_value}) {
    device.move(view->data);
  }
  for (TensorView* view : {&out.key, &out.value, &of.query, &of.key, &of.value}) {
    device.move(view->data);
  }
  auto scratch = test::nan_workspace(group_pool_cuda_workspace(in, out));
  group_pool_cuda(in, out, scratch.data(), {});
  auto grad_scratch = test::nan_workspace(group_pool_backward_cuda_workspace(in, of));
  group_pool_backward_cuda(in, of, grad_scratch.data(), {});
  device.download();
}

TEST_F(GpuGroupPoolTest, RandomCasesAreWithinTheBound) {
  group_pool_cases::expect_right(group_pool_cases::random_cases(200), run);
}

TEST_F(GpuGroupPoolTest, EveryWidthAndGroupIsWithinTheBound) {
  group_pool_cases::expect_right(group_pool_cases::width_cases(), run);
  for (const std::int64_t width : {1, 8, 64, 65, 128, 256}) {
    group_pool_cases::expect_right(group_pool_cases::group_cases(width), run);
  }
}

TEST_F(GpuGroupPoolTest, HasTheSameBitsInEveryRun) {
  for (const PoolKind kind : group_pool_cases::kKinds) {
    PoolTensors tensors({.batch = 2,
                         .num_heads = 8,
                         .num_kv_heads = 2,
                         .num_tokens = 1024,
                         .num_queries = 1024,
                         .head_dim = 128,
                         .group = 16,
                         .kind = kind,
                         .dtype = DType::kBFloat16});
    run(tensors);
    const std::vector<std::byte> first = group_pool_cases::bytes_of_results(tensors);
    run(tensors);
    EXPECT_EQ(group_pool_cases::bytes_of_results(tensors), first);
  }
}

TEST_F(GpuGroupPoolTest, WrongSizesAreRefused) {
  PoolTensors tensors({.num_tokens = 8, .num_queries = 8, .group = 2});
  GroupPoolInputs in = tensors.inputs();
  in.group = 0;
  EXPECT_THROW(group_pool_cuda(in, tensors.outputs(), nullptr, {}), ValueError);
}

}  // namespace
}  // namespace paperlab::kernels
