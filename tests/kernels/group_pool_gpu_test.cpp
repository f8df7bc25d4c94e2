// Pooling on a GPU. Compiled in builds with CUDA alone.

#include <gtest/gtest.h>

#include "kernels/group_pool/cuda.h"
#include "paperlab/core/error.h"
#include "tests/support/device_memory.h"
#include "tests/support/gpu.h"
#include "tests/support/group_pool_exact.h"

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

constexpr DType kDTypes[] = {DType::kFloat32, DType::kBFloat16, DType::kFloat16, DType::kFloat64};
constexpr PoolKind kKinds[] = {PoolKind::kAttention, PoolKind::kMean, PoolKind::kMax};

TEST_F(GpuGroupPoolTest, RandomCasesAreWithinTheBound) {
  for (std::uint64_t seed = 0; seed < 200; ++seed) {
    test::PoolCase of = test::random_pool_case(seed);
    of.dtype = kDTypes[seed % 4];
    PoolTensors tensors(of);
    ASSERT_TRUE(test::is_pooled_right(tensors, run));
  }
}

TEST_F(GpuGroupPoolTest, EveryWidthAndGroupIsWithinTheBound) {
  for (const DType dtype : kDTypes) {
    for (const PoolKind kind : kKinds) {
      for (const std::int64_t width : {1, 8, 64, 65, 128, 256}) {
        for (const std::int64_t group : {1, 16, 70}) {
          PoolTensors tensors({.num_heads = 4,
                               .num_kv_heads = 2,
                               .num_tokens = 2 * group + 3,
                               .num_queries = 2 * group + 3,
                               .head_dim = width,
                               .group = group,
                               .first = 1,
                               .kind = kind,
                               .dtype = dtype});
          ASSERT_TRUE(test::is_pooled_right(tensors, run));
        }
      }
    }
  }
}

TEST_F(GpuGroupPoolTest, HasTheSameBitsInEveryRun) {
  for (const PoolKind kind : kKinds) {
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
    std::vector<std::vector<std::byte>> first;
    for (const auto& results : {tensors.results(), tensors.gradient_results()}) {
      for (const GuardedTensor* tensor : results) {
        first.push_back(tensor->all_bytes());
      }
    }
    run(tensors);
    std::size_t next = 0;
    for (const auto& results : {tensors.results(), tensors.gradient_results()}) {
      for (const GuardedTensor* tensor : results) {
        EXPECT_EQ(tensor->all_bytes(), first[next++]);
      }
    }
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
