// depth_aggregate on a GPU against the textbook. Compiled in builds with CUDA alone.

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <type_traits>
#include <vector>

#include "kernels/common/cuda/device_buffer.h"
#include "kernels/depth_aggregate/cuda.h"
#include "tests/kernels/depth_aggregate_forms.h"
#include "tests/support/gpu.h"

namespace paperlab::kernels::depth_test {
namespace {

class GpuDepthAggregateTest : public test::GpuTest {};

// Memory of the host, and where it lies on the device.
struct Mirror {
  std::vector<std::byte>* host;
  DeviceBuffer<std::byte> device;
};

// Every call takes the memory of the case there and back.
class GpuForms final : public Forms {
 public:
  GpuForms(Case& of, const std::vector<Numbers*>& further) {
    for (std::vector<Numbers>* group : {&of.sources, &of.out, &of.grad_out, &of.grad_sources}) {
      for (Numbers& numbers : *group) {
        add(numbers);
      }
    }
    for (Numbers* numbers : {&of.w1, &of.w2, &of.bias, &of.weights, &of.z, &of.inverse_rms,
                             &of.grad_weights, &of.grad_w1, &of.grad_w2, &of.grad_bias}) {
      add(*numbers);
    }
    for (Numbers* numbers : further) {
      add(*numbers);
    }
  }

  void weights(const ConnectionWeights& problem, const ConnectionWeightsResult& result) override {
    const auto there = moved(problem);
    const auto results = moved(result);
    run(connection_weights_cuda_workspace(there, results),
        [&](void* workspace) { connection_weights_cuda(there, results, workspace, {}); });
  }
  void weights_backward(const ConnectionWeights& problem,
                        const ConnectionWeightsGradients& gradients) override {
    const auto there = moved(problem);
    const auto results = moved(gradients);
    run(connection_weights_backward_cuda_workspace(there, results),
        [&](void* workspace) { connection_weights_backward_cuda(there, results, workspace, {}); });
  }
  void sum(const DepthAggregate& problem, void* const* out) override {
    const auto there = moved(problem);
    const auto streams = moved(out, problem.num_ways);
    run(0, [&](void* /*workspace*/) { depth_aggregate_cuda(there, streams, {}); });
  }
  void sum_backward(const DepthAggregate& problem,
                    const DepthAggregateGradients& gradients) override {
    const auto there = moved(problem);
    const auto results = moved(problem, gradients);
    run(depth_aggregate_backward_cuda_workspace(there, results),
        [&](void* workspace) { depth_aggregate_backward_cuda(there, results, workspace, {}); });
  }
  void step(const DepthStep& problem, const ConnectionWeightsResult& result,
            void* const* out) override {
    const auto there = moved(problem);
    const auto results = moved(result);
    const auto streams = moved(out, problem.aggregate.num_ways);
    run(depth_step_cuda_workspace(there, results),
        [&](void* workspace) { depth_step_cuda(there, results, streams, workspace, {}); });
  }
  void step_backward(const DepthStep& problem, const DepthStepGradients& gradients) override {
    const auto there = moved(problem);
    const DepthStepGradients results = {moved(problem.aggregate, gradients.aggregate),
                                        moved(gradients.generator)};
    run(depth_step_backward_cuda_workspace(there, results),
        [&](void* workspace) { depth_step_backward_cuda(there, results, workspace, {}); });
  }

 private:
  void add(Numbers& numbers) {
    mirrors_.push_back({&numbers.bytes(), DeviceBuffer<std::byte>(numbers.bytes().size())});
  }

  // The place on the device of a place on the host.
  std::byte* find(const void* host) {
    const auto at = reinterpret_cast<std::uintptr_t>(host);
    for (Mirror& mirror : mirrors_) {
      const auto first = reinterpret_cast<std::uintptr_t>(mirror.host->data());
      if (at >= first && at < first + mirror.host->size()) {
        return mirror.device.data() + (at - first);
      }
    }
    return nullptr;
  }
  const void* moved(const void* host) { return find(host); }
  void* moved(void* host) { return find(host); }

  // Arrays of addresses live as long as the forms.
  template <class Void>
  Void* const* moved(Void* const* host, std::int64_t count) {
    if (host == nullptr) {
      return nullptr;
    }
    auto& there = places_of<Void>();
    there.push_back(std::make_unique<std::vector<Void*>>());
    for (std::int64_t i = 0; i < count; ++i) {
      there.back()->push_back(moved(host[i]));
    }
    return there.back()->data();
  }
  template <class Void>
  auto& places_of() {
    if constexpr (std::is_const_v<Void>) {
      return const_places_;
    } else {
      return places_;
    }
  }

  ConnectionWeights moved(ConnectionWeights of) {
    of.x = moved(of.x);
    of.w1 = moved(of.w1);
    of.w2 = moved(of.w2);
    of.bias = moved(of.bias);
    return of;
  }
  ConnectionWeightsResult moved(const ConnectionWeightsResult& of) {
    return {moved(of.weights), moved(of.z), moved(of.inverse_rms)};
  }
  ConnectionWeightsGradients moved(ConnectionWeightsGradients of) {
    of.z = moved(of.z);
    of.inverse_rms = moved(of.inverse_rms);
    of.grad_weights = moved(of.grad_weights);
    for (void** place : {&of.grad_x, &of.grad_w1, &of.grad_w2, &of.grad_bias}) {
      *place = moved(*place);
    }
    return of;
  }
  DepthAggregate moved(DepthAggregate of) {
    of.sources = moved(of.sources, of.num_sources);
    of.weights = moved(of.weights);
    return of;
  }
  DepthAggregateGradients moved(const DepthAggregate& problem, DepthAggregateGradients of) {
    of.grad_out = moved(of.grad_out, problem.num_ways);
    of.grad_sources = moved(of.grad_sources, problem.num_sources);
    of.grad_weights = moved(of.grad_weights);
    return of;
  }
  DepthStep moved(DepthStep of) {
    of.generator = moved(of.generator);
    of.aggregate = moved(of.aggregate);
    of.base = moved(of.base);
    of.delta = moved(of.delta);
    of.newest = moved(of.newest);
    return of;
  }

  template <class Call>
  void run(std::int64_t num_bytes, Call call) {
    for (Mirror& mirror : mirrors_) {
      mirror.device.upload(*mirror.host, {});
    }
    DeviceBuffer<std::byte> workspace(static_cast<std::size_t>(num_bytes));
    call(workspace.data());
    for (const Mirror& mirror : mirrors_) {
      mirror.device.download(*mirror.host, {});
    }
    PAPERLAB_CUDA_CHECK(cudaStreamSynchronize(nullptr));
  }

  std::vector<Mirror> mirrors_;
  std::vector<std::unique_ptr<std::vector<void*>>> places_;
  std::vector<std::unique_ptr<std::vector<const void*>>> const_places_;
};

MakeForms on_gpu() {
  return [](Case& of, const std::vector<Numbers*>& further) {
    return std::make_unique<GpuForms>(of, further);
  };
}

TEST_F(GpuDepthAggregateTest, TheSumAndItsGradientsAreWithinTheBound) {
  for_gpu_cases(gpu_sum_shapes(), [](Case& of) {
    Case again = of;
    expect_right_sum(on_gpu(), of, of.shape.n % of.shape.j);
    expect_right_sum(on_gpu(), again, of.shape.n % of.shape.j);
    EXPECT_TRUE(same_results(of, again)) << name(of) << ": other bits in another run";
  });
  for (const DType dtype : kGpuDTypes) {
    Case large(dtype, {1000, 1024, 9, 4, 0});
    expect_right_sum(on_gpu(), large, 4);
  }
}

TEST_F(GpuDepthAggregateTest, StaticWeights) {
  for_gpu_cases(gpu_static_shapes(), [](Case& of) { expect_right_static_weights(on_gpu(), of); });
}

TEST_F(GpuDepthAggregateTest, TheGeneratorAndItsGradientsAreWithinTheBound) {
  for (const GeluForm gelu : {GeluForm::kExact, GeluForm::kTanh}) {
    for_gpu_cases(gpu_generator_shapes(), [=](Case& of) {
      of.gelu = gelu;
      expect_right_generator(on_gpu(), of);
    });
  }
  for (const DType dtype : kGpuDTypes) {
    Case of(dtype, {1100, 256, 6, 4, 24});
    Case again = of;
    expect_right_generator(on_gpu(), of);
    expect_right_generator(on_gpu(), again);
    EXPECT_TRUE(same_results(of, again)) << name(of) << ": other bits in another run";
  }
}

TEST_F(GpuDepthAggregateTest, AStepIsItsParts) {
  for_gpu_cases(gpu_step_shapes(), [](Case& of) { expect_step_is_its_parts(on_gpu(), of); });
  for (const DType dtype : kGpuDTypes) {
    Case large(dtype, {700, 512, 5, 4, 20});
    expect_step_is_its_parts(on_gpu(), large);
  }
}

TEST_F(GpuDepthAggregateTest, MatricesMayLieTurnedOver) {
  for_gpu_cases(gpu_turned_shapes(),
                [](Case& of) { expect_same_with_turned_matrices(on_gpu(), of); });
}

// Needs no GPU.
TEST(DepthAggregateCudaTest, BadArgumentsAreRefusedBeforeAnyWork) {
  Case many(DType::kFloat32, {1, 4, kMostCudaSources + 1, 1, 0});
  EXPECT_THROW(depth_aggregate_cuda(many.sum(), many.out_at.data(), {}), UnsupportedError);
  Case of(DType::kFloat16, {2, 4, 3, 1, 2});
  DepthAggregate sum = of.sum();
  EXPECT_THROW(depth_aggregate_backward_cuda(sum, of.sum_gradients(4), nullptr, {}), ValueError);
  sum.width = 0;
  EXPECT_THROW(depth_aggregate_cuda(sum, of.out_at.data(), {}), ShapeError);
  ConnectionWeights generator = of.generator();
  generator.eps = 0.0;
  EXPECT_THROW(connection_weights_cuda(generator, of.generated(), nullptr, {}), ValueError);
  DepthStep step = of.step();
  step.base = of.sources[0].data();
  EXPECT_THROW(depth_step_cuda(step, of.generated(), of.out_at.data(), nullptr, {}), ValueError);
}

}  // namespace
}  // namespace paperlab::kernels::depth_test
