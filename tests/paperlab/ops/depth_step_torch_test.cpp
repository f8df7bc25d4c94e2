// A pass by LibTorch's operations against the definition, and beside our kernel: each half of a
// step may be computed by the other one. Tensors without memory go through the same code.

#include <ATen/core/grad_mode.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/ones.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>

#include "paperlab/ops/depth_step.h"
#include "tests/paperlab/ops/backend_guard.h"
#include "tests/paperlab/ops/depth_step_network.h"

namespace paperlab::ops::depth_test {
namespace {

using ops::test::WithBackend;

class DepthStepTorchTest : public ::testing::TestWithParam<Case> {};

TEST_P(DepthStepTorchTest, ValuesAndGradientsAreThoseOfTheDefinition) {
  const Network network(GetParam());
  const WithBackend torch(Backend::kTorch);
  const at::Tensor got = network.run_ours();
  const at::Tensor wanted = network.run_definition();
  expect_close({got.detach()}, {wanted.detach()}, {wanted}, 1e-12);
  expect_close(gradients_of(got, network.parameters), gradients_of(wanted, network.parameters),
               network.parameters, 1e-12);
  const at::NoGradGuard no_grad;
  EXPECT_TRUE(at::equal(network.run_ours(), got));
}

TEST_P(DepthStepTorchTest, TheBackwardPassMayBeComputedByTheOther) {
  const Network network(GetParam());
  const Tensors wanted = gradients_of(network.run_definition(), network.parameters);
  for (const bool is_forward_torch : {false, true}) {
    at::Tensor loss;
    {
      const WithBackend forward(is_forward_torch ? Backend::kTorch : Backend::kAuto);
      loss = network.run_ours();
    }
    const WithBackend backward(is_forward_torch ? Backend::kAuto : Backend::kTorch);
    expect_close(gradients_of(loss, network.parameters), wanted, network.parameters, 1e-12);
  }
}

INSTANTIATE_TEST_SUITE_P(Networks, DepthStepTorchTest, ::testing::ValuesIn(all_cases()),
                         [](const auto& info) { return info.param.name; });

class DepthStepTorchPrecisionTest : public ::testing::TestWithParam<at::ScalarType> {};

// Bound of depth_step_test.cpp: twice the error of the definition in the same dtype, which rounds
// after each operation, and four roundings.
TEST_P(DepthStepTorchPrecisionTest, ValuesAndGradientsAreNearThoseInFloat64) {
  const WithBackend torch(Backend::kTorch);
  Case test{.name = "low", .length = 9, .width = 24, .uses_newest = true, .gain = 0.25};
  test.dtype = GetParam();
  const Network low(test);
  test.dtype = at::kDouble;
  const Network exact(test);
  for (std::size_t i = 0; i < exact.parameters.size(); ++i) {
    const at::NoGradGuard no_grad;
    exact.parameters[i].copy_(low.parameters[i]);
  }
  const double epsilon = GetParam() == at::kFloat  ? 0x1p-23
                         : GetParam() == at::kHalf ? 0x1p-11
                                                   : 0x1p-8;
  const Tensors grads = gradients_of(low.run_ours(), low.parameters);
  const Tensors plain = gradients_of(low.run_definition(), low.parameters);
  const Tensors wanted = gradients_of(exact.run_definition(), exact.parameters);
  for (std::size_t i = 0; i < grads.size(); ++i) {
    EXPECT_EQ(grads[i].scalar_type(), GetParam());
    const auto error_of = [&](const Tensors& found) {
      return (found[i].to(at::kDouble) - wanted[i]).norm().item<double>();
    };
    EXPECT_LE(error_of(grads), 2 * error_of(plain) + 4 * epsilon * wanted[i].norm().item<double>())
        << i;
  }
}

INSTANTIATE_TEST_SUITE_P(Types, DepthStepTorchPrecisionTest,
                         ::testing::Values(at::kFloat, at::kBFloat16, at::kHalf));

// On the meta device an operation that made a tensor on the CPU would be refused.
TEST(DepthStepTorch, EverythingLiesOnTheDeviceOfTheStates) {
  for (Case test : all_cases()) {
    Network network(test);
    Tensors inputs;
    const auto move = [&inputs](at::Tensor& x) {
      if (x.defined()) {
        x = x.detach().to(at::kMeta).set_requires_grad(true);
        inputs.push_back(x);
      }
    };
    move(network.first);
    for (at::Tensor& block : network.blocks) {
      move(block);
    }
    for (DepthWeights& weights : network.weights) {
      move(weights.w1);
      move(weights.w2);
      move(weights.bias);
    }
    const Tensors grads = gradients_of(network.run_ours(), inputs);
    for (std::size_t i = 0; i < inputs.size(); ++i) {
      if (grads[i].defined()) {
        EXPECT_TRUE(grads[i].is_meta()) << test.name;
        EXPECT_EQ(grads[i].sizes(), inputs[i].sizes()) << test.name;
      }
    }
  }
}

}  // namespace
}  // namespace paperlab::ops::depth_test
