// Values and gradients of a pass against those of the definition.

#include "paperlab/ops/depth_step.h"

#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "paperlab/ops/connection_weights.h"
#include "paperlab/ops/depth_aggregate.h"
#include "tests/paperlab/ops/depth_step_network.h"

namespace paperlab::ops::depth_test {
namespace {

class DepthStepTest : public ::testing::TestWithParam<Case> {};

TEST_P(DepthStepTest, ValuesAndGradientsAreThoseOfTheDefinition) {
  const Network network(GetParam());
  const at::Tensor got = network.run_ours();
  const at::Tensor wanted = network.run_definition();
  expect_close({got.detach()}, {wanted.detach()}, {wanted}, 1e-12);
  expect_close(gradients_of(got, network.parameters), gradients_of(wanted, network.parameters),
               network.parameters, 1e-12);
}

TEST_P(DepthStepTest, WithoutGradientsTheBitsAreTheSame) {
  const Network network(GetParam());
  const at::Tensor with = network.run_ours().detach();
  const at::NoGradGuard no_grad;
  EXPECT_TRUE(at::equal(network.run_ours(), with));
}

TEST_P(DepthStepTest, TheBitsDoNotDependOnTheThreads) {
  const Network network(GetParam());
  const int before = at::get_num_threads();
  std::vector<Tensors> found;
  for (const int threads : {1, 2, 2}) {
    at::set_num_threads(threads);
    found.push_back(gradients_of(network.run_ours(), network.parameters));
  }
  at::set_num_threads(before);
  for (std::size_t i = 0; i < network.parameters.size(); ++i) {
    for (std::size_t run = 1; run < found.size(); ++run) {
      ASSERT_EQ(found[run][i].defined(), found[0][i].defined());
      EXPECT_TRUE(!found[0][i].defined() || at::equal(found[run][i], found[0][i]));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Networks, DepthStepTest, ::testing::ValuesIn(all_cases()),
                         [](const auto& info) { return info.param.name; });

class DepthStepPrecisionTest : public ::testing::TestWithParam<at::ScalarType> {};

// Against twice the error of the definition in the same dtype, which rounds after each operation,
// and four roundings. Gradients are large in no direction, so that errors do not grow.
TEST_P(DepthStepPrecisionTest, ValuesAndGradientsAreNearThoseInFloat64) {
  Case test{.name = "low", .length = 9, .width = 24, .uses_newest = true, .gain = 0.25};
  test.dtype = GetParam();
  const Network low(test);
  test.dtype = at::kDouble;
  const Network exact(test);
  for (std::size_t i = 0; i < exact.parameters.size(); ++i) {
    const at::NoGradGuard no_grad;
    exact.parameters[i].copy_(low.parameters[i]);
  }
  const double epsilon = GetParam() == at::kFloat ? 0x1p-23 : 0x1p-8;
  const at::Tensor got = low.run_ours();
  EXPECT_EQ(got.scalar_type(), GetParam());
  const Tensors grads = gradients_of(got, low.parameters);
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

INSTANTIATE_TEST_SUITE_P(Types, DepthStepPrecisionTest,
                         ::testing::Values(at::kFloat, at::kBFloat16));

// W2 = 0 and a bias of 1 for the newest source.
TEST(DepthStep, AtInitializationEveryStreamIsTheNewestState) {
  for (const at::ScalarType dtype : {at::kFloat, at::kDouble, at::kBFloat16}) {
    const at::Tensor first = normal({2, 3, 8}, 0).to(dtype);
    DepthStates states(4, first);
    at::Tensor x = first;
    for (std::int64_t i = 1; i < 4; ++i) {
      at::Tensor bias = at::zeros({4, i + 1}, first.options());
      bias.select(1, i).fill_(1.0);
      Sources sources;
      for (std::int64_t j = 0; j <= i; ++j) {
        sources.push_back(j);
      }
      const DepthStep step = states.push(x, x.sin(),
                                         {.w1 = normal({8, 5}, 1).to(dtype),
                                          .w2 = at::zeros({5, 4 * (i + 1)}, first.options()),
                                          .bias = bias},
                                         sources);
      EXPECT_TRUE(at::equal(step.newest, x + x.sin()));
      for (const at::Tensor& stream : step.streams) {
        EXPECT_TRUE(at::equal(stream, step.newest));
      }
      x = step.newest;
    }
  }
}

TEST(DepthStep, ItIsTheTwoOperatorsInOne) {
  const at::Tensor first = normal({2, 3, 8}, 0);
  const at::Tensor x = normal({2, 3, 8}, 1);
  const DepthWeights in{
      .w1 = normal({8, 6}, 2), .w2 = normal({6, 6}, 3), .bias = normal({3, 2}, 4)};
  DepthStates states(2, first);
  const DepthStep step = states.push(x, {}, in, {0, 1});
  const at::Tensor weights = connection_weights(x, in.w1, in.w2, in.bias);
  const at::Tensor out = depth_aggregate(at::stack({first, x}), weights);
  EXPECT_LE((out - at::stack(step.streams)).abs().max().item<double>(), 1e-13);
}

}  // namespace
}  // namespace paperlab::ops::depth_test
