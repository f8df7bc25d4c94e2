// Attention on a GPU. Compiled in builds with CUDA alone.

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "kernels/attention/cuda.h"
#include "kernels/common/cuda/device_buffer.h"
#include "paperlab/core/error.h"
#include "tests/kernels/attention_block_cases.h"
#include "tests/kernels/attention_hopper_cases.h"
#include "tests/support/gpu.h"

namespace paperlab::kernels {
namespace {

using test::AttentionCase;
using test::AttentionTensors;
using test::BlockCase;
using test::Direction;
using test::GuardedTensor;

using Bytes = DeviceBuffer<std::byte>;

// A tensor's memory on the device, with the guards around it.
class Mirror {
 public:
  explicit Mirror(GuardedTensor& host)
      : host_(&host), device_(std::span<const std::byte>(host.bytes())) {}

  template <class View>
  View moved(View view) {
    if (view.data != nullptr) {
      view.data =
          device_.data() + (static_cast<const std::byte*>(view.data) - host_->bytes().data());
    }
    return view;
  }
  TensorView view() { return moved(host_->view()); }
  ConstTensorView input() { return moved(std::as_const(*host_).view()); }
  void download() { device_.download(host_->bytes(), {}); }

 private:
  GuardedTensor* host_;
  Bytes device_;
};

// All tensors of a case on the device.
class OnDevice {
 public:
  explicit OnDevice(AttentionTensors& tensors)
      : tensors_(tensors),
        key_start_(std::span<const std::int64_t>(tensors.key_start)),
        key_end_(std::span<const std::int64_t>(tensors.key_end)) {
    tensors.outputs();    // NaN
    tensors.gradients();  // NaN
    for (GuardedTensor* tensor :
         {&tensors.query, &tensors.key, &tensors.value, &tensors.prefix_query, &tensors.prefix_key,
          &tensors.prefix_value, &tensors.grad_out, &tensors.grad_lse, &tensors.out, &tensors.lse,
          &tensors.query_gradient, &tensors.key_gradient, &tensors.value_gradient,
          &tensors.prefix_query_gradient, &tensors.prefix_key_gradient,
          &tensors.prefix_value_gradient}) {
      mirrors_.emplace_back(*tensor);
    }
    forward_space_ = Bytes(static_cast<std::size_t>(attention_cuda_workspace(inputs())));
    backward_space_ = Bytes(static_cast<std::size_t>(attention_backward_cuda_workspace(inputs())));
  }

  // Waits for nothing.
  void launch(Direction direction, const Context& context = {}) {
    const AttentionInputs in = inputs();
    const AttentionOutputs out{mirrors_[8].view(), mirrors_[9].view().data};
    attention_cuda(in, out, forward_space_.data(), context);
    if (direction == Direction::kBoth) {
      attention_backward_cuda(in,
                              {mirrors_[6].input(), mirrors_[7].input().data, mirrors_[8].input(),
                               mirrors_[9].input().data},
                              {mirrors_[10].view(), mirrors_[11].view(), mirrors_[12].view(),
                               mirrors_[13].view(), mirrors_[14].view(), mirrors_[15].view()},
                              backward_space_.data(), context);
    }
  }
  void download() {
    PAPERLAB_CUDA_CHECK(cudaDeviceSynchronize());
    for (Mirror& mirror : mirrors_) {
      mirror.download();
    }
    PAPERLAB_CUDA_CHECK(cudaStreamSynchronize(nullptr));
  }

  AttentionInputs inputs() {
    AttentionInputs in = tensors_.inputs();
    in.query = mirrors_[0].input();
    in.key = mirrors_[1].input();
    in.value = mirrors_[2].input();
    in.prefix_query = mirrors_[3].input();
    in.prefix_key = mirrors_[4].input();
    in.prefix_value = mirrors_[5].input();
    in.key_start = in.key_start == nullptr ? nullptr : key_start_.data();
    in.key_end = in.key_end == nullptr ? nullptr : key_end_.data();
    return in;
  }

 private:
  AttentionTensors& tensors_;
  DeviceBuffer<std::int64_t> key_start_;
  DeviceBuffer<std::int64_t> key_end_;
  std::vector<Mirror> mirrors_;
  Bytes forward_space_;
  Bytes backward_space_;
};

void run_on_gpu(AttentionTensors& tensors, Direction direction) {
  OnDevice device(tensors);
  device.launch(direction);
  device.download();
}

class GpuAttentionCaseTest : public test::GpuTest,
                             public testing::WithParamInterface<test::BlockCases> {};

TEST_P(GpuAttentionCaseTest, IsWithinTheBound) {
  for (const BlockCase& of : GetParam().make()) {
    EXPECT_TRUE(test::is_right(of, run_on_gpu));
  }
}

INSTANTIATE_TEST_SUITE_P(Cases, GpuAttentionCaseTest, testing::ValuesIn(test::kBlockCases),
                         test::block_cases_name);
// On sm_90 the path of TMA and wgmma where boxes can name the keys, else that of mma.sync.
INSTANTIATE_TEST_SUITE_P(HopperCases, GpuAttentionCaseTest, testing::ValuesIn(test::kHopperCases),
                         test::block_cases_name);

class GpuAttentionTest : public test::GpuTest {};

TEST_F(GpuAttentionTest, LongRowsAreWithinTheBound) {
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat16}) {
    for (const std::int64_t head_dim : {64, 128}) {
      for (const KeyRule rule : {KeyRule::dense(), KeyRule::core_context(4, 200)}) {
        const AttentionCase of = {.num_heads = 4,
                                  .num_kv_heads = 2,
                                  .num_queries = 700,
                                  .num_keys = 900,
                                  .head_dim = head_dim,
                                  .dtype = dtype,
                                  .rule = rule,
                                  .num_prefix_heads = test::needs_prefix(rule) ? 2 : 0};
        EXPECT_TRUE(test::is_right({of}, run_on_gpu));
      }
    }
  }
}

// What Hopper has instructions of its own for, without them.
TEST_F(GpuAttentionTest, PortableBlocksAreWithinTheBound) {
  for (const test::BlockCases& cases : test::kHopperCases) {
    for (const BlockCase& of : cases.make()) {
      EXPECT_TRUE(test::is_right(of, [](AttentionTensors& tensors, Direction direction) {
        OnDevice device(tensors);
        device.launch(direction, {.is_portable = true});
        device.download();
      }));
    }
  }
}

// Keys and values that heads and batch rows share by strides of 0, in both passes.
TEST_F(GpuAttentionTest, SharedKeysAreWithinTheBound) {
  for (const std::int64_t head_dim : {64, 128}) {
    for (const DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat16}) {
      EXPECT_TRUE(test::is_right({{.batch = 2,
                                   .num_heads = 4,
                                   .num_kv_heads = 2,
                                   .num_queries = 150,
                                   .num_keys = 190,
                                   .head_dim = head_dim,
                                   .dtype = dtype,
                                   .layout = test::AttentionLayout::kShared}},
                                 run_on_gpu));
    }
  }
}

// A launch leaves nothing behind that another one could find: barriers begin anew.
TEST_F(GpuAttentionTest, LaunchesInARowDoNotDisturbEachOther) {
  const std::vector<BlockCase> cases = {test::ring_rounds()[1], test::ring_rounds().front(),
                                        test::other_masks().back(), test::split_rows().front()};
  for (const BlockCase& of : cases) {
    for (const BlockCase& other : cases) {
      EXPECT_TRUE(test::is_right(of, [&](AttentionTensors& tensors, Direction direction) {
        AttentionTensors further(other.of);
        OnDevice before(further);
        OnDevice device(tensors);
        before.launch(Direction::kForward);
        device.launch(direction);
        before.launch(Direction::kForward);
        device.download();
      }));
    }
  }
}

// All work is on the caller's stream, which can record it: nothing waits or allocates.
TEST_F(GpuAttentionTest, ARecordedCallGivesTheSameBits) {
  for (const std::int64_t queries : {2, 300}) {  // split, and not
    const AttentionCase of = {.num_heads = 4,
                              .num_kv_heads = 2,
                              .num_queries = queries,
                              .num_keys = 700,
                              .head_dim = 128,
                              .dtype = DType::kBFloat16};
    AttentionTensors once(of);
    run_on_gpu(once, Direction::kBoth);
    AttentionTensors recorded(of);
    OnDevice device(recorded);
    cudaStream_t stream = nullptr;
    PAPERLAB_CUDA_CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    PAPERLAB_CUDA_CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    device.launch(Direction::kBoth, {stream});
    cudaGraph_t graph = nullptr;
    PAPERLAB_CUDA_CHECK(cudaStreamEndCapture(stream, &graph));
    cudaGraphExec_t executable = nullptr;
    PAPERLAB_CUDA_CHECK(cudaGraphInstantiate(&executable, graph, 0));
    PAPERLAB_CUDA_CHECK(cudaGraphLaunch(executable, stream));
    device.download();
    EXPECT_TRUE(test::have_same_bits(once, recorded));
    PAPERLAB_CUDA_CHECK(cudaGraphExecDestroy(executable));
    PAPERLAB_CUDA_CHECK(cudaGraphDestroy(graph));
    PAPERLAB_CUDA_CHECK(cudaStreamDestroy(stream));
  }
}

TEST_F(GpuAttentionTest, RepeatedLaunchesHaveTheSameBits) {
  for (const std::int64_t head_dim : {64, 128}) {
    const AttentionCase of = {.batch = 2,
                              .num_heads = 8,
                              .num_kv_heads = 2,
                              .num_queries = 600,
                              .num_keys = 1000,
                              .head_dim = head_dim,
                              .dtype = DType::kBFloat16,
                              .rule = KeyRule::core_context(3, 300),
                              .num_prefix_heads = 2,
                              .has_prefix_query = true};
    AttentionTensors first(of);
    run_on_gpu(first, Direction::kForward);
    AttentionTensors again(of);
    OnDevice device(again);
    for (int repetition = 0; repetition < 50; ++repetition) {
      device.launch(Direction::kForward);
      device.download();
      ASSERT_TRUE(test::have_same_bits(first, again, Direction::kForward)) << repetition;
    }
  }
}

TEST_F(GpuAttentionTest, HasTheSameBitsInEveryRun) {
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16}) {
    for (const std::int64_t queries : {2, 300}) {
      const AttentionCase of = {.batch = 2,
                                .num_heads = 4,
                                .num_kv_heads = 2,
                                .num_queries = queries,
                                .num_keys = 1500,
                                .head_dim = 128,
                                .dtype = dtype,
                                .rule = KeyRule::core_context(3, 50),
                                .num_prefix_heads = 2};
      AttentionTensors first(of);
      run_on_gpu(first, Direction::kBoth);
      for (int repetition = 0; repetition < 3; ++repetition) {
        AttentionTensors again(of);
        run_on_gpu(again, Direction::kBoth);
        EXPECT_TRUE(test::have_same_bits(first, again));
      }
    }
  }
}

TEST_F(GpuAttentionTest, RefusesWhatAttentionRefuses) {
  AttentionTensors tensors({.num_queries = 3, .num_keys = 5});
  OnDevice device(tensors);
  AttentionInputs in = device.inputs();
  in.rule.window = 0;
  in.rule.kind = KeyRuleKind::kWindow;
  EXPECT_THROW(attention_cuda_workspace(in), ValueError);
}

}  // namespace
}  // namespace paperlab::kernels
