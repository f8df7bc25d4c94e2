#include "paperlab/mudd/modules.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/allclose.h>
#include <ATen/ops/einsum.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/zeros.h>
#include <c10/util/Exception.h>
#include <gtest/gtest.h>

#include <vector>

#include "paperlab/core/error.h"

namespace paperlab::mudd {
namespace {

TEST(MuddModulesTest, EverySumStartsAsTheNewestState) {
  const DepthAggregate aggregate(6, 3, 4, {}, at::kDouble);
  const at::Tensor states = at::randn({3, 2, 5, 6}, at::kDouble);
  const at::Tensor streams = aggregate.forward(states);
  ASSERT_EQ(streams.sizes().vec(), (std::vector<std::int64_t>{4, 2, 5, 6}));
  for (std::int64_t way = 0; way < 4; ++way) {
    EXPECT_TRUE(streams.select(0, way).equal(states.select(0, 2)));
  }
}

TEST(MuddModulesTest, TheSumIsThatOfTheGeneratedWeights) {
  const DepthAggregate aggregate(6, 3, 2, {}, at::kDouble);
  const ConnectionWeightGenerator generator(6, 3, 2, {}, at::kDouble);
  const at::NoGradGuard no_grad;
  const NamedTensors of_aggregate = aggregate.named_parameters();
  const NamedTensors of_generator = generator.named_parameters();
  for (std::size_t i = 0; i < of_generator.size(); ++i) {
    EXPECT_EQ(of_aggregate[i].first, "generator." + of_generator[i].first);
    EXPECT_TRUE(of_generator[i].second.requires_grad());
    of_generator[i].second.normal_();
    of_aggregate[i].second.copy_(of_generator[i].second);
  }
  const at::Tensor states = at::randn({3, 2, 5, 6}, at::kDouble);
  const at::Tensor weights = generator.forward(states.select(0, 2));
  const at::Tensor sums = at::einsum("cbtj,jbtd->cbtd", {weights, states});
  EXPECT_TRUE(at::allclose(aggregate.forward(states), sums, 1e-13, 1e-13));
}

TEST(MuddModulesTest, ParametersGetGradients) {
  const DepthAggregate aggregate(6, 3);
  aggregate.forward(at::randn({3, 2, 5, 6})).square().sum().backward();
  for (const auto& [name, value] : aggregate.named_parameters()) {
    ASSERT_TRUE(value.grad().defined()) << name;
    // With w2 = 0 no gradient reaches w1.
    EXPECT_EQ(value.grad().count_nonzero().item<std::int64_t>() > 0, name != "generator.w1.weight")
        << name;
  }
}

TEST(MuddModulesTest, AListOfStatesIsTheirTensor) {
  const DepthAggregate aggregate(6, 3, 2, {}, at::kDouble);
  const at::NoGradGuard no_grad;
  for (const auto& [name, value] : aggregate.named_parameters()) {
    value.normal_();
  }
  const at::Tensor states = at::randn({3, 2, 5, 6}, at::kDouble);
  EXPECT_TRUE(aggregate.forward(states.unbind(0)).equal(aggregate.forward(states)));
  const at::Tensor weights = at::randn({2, 2, 5, 3}, at::kDouble);
  EXPECT_TRUE(depth_aggregate(states.unbind(0), weights).equal(depth_aggregate(states, weights)));
}

// By the module, before the generator has worked.
TEST(MuddModulesTest, TheNumberOfStatesIsComparedFirst) {
  const DepthAggregate aggregate(4, 2);
  const at::Tensor state = at::zeros({1, 1, 4});
  const std::vector<std::vector<at::Tensor>> lists = {{}, {state}, {state, state, state}};
  for (const std::vector<at::Tensor>& states : lists) {
    try {
      aggregate.forward(states);
      ADD_FAILURE() << states.size();
    } catch (const c10::ValueError& error) {
      EXPECT_EQ(error.msg().find("mudd::DepthAggregate: states must be 2"), 0) << error.msg();
    }
  }
  EXPECT_THROW(aggregate.forward(at::zeros({3, 1, 1, 4})), c10::ValueError);
}

TEST(MuddModulesTest, WhatDoesNotFitIsRefused) {
  EXPECT_THROW(ConnectionWeightGenerator(0, 1), ValueError);
  EXPECT_THROW(ConnectionWeightGenerator(4, 0), ValueError);
  EXPECT_THROW(DepthAggregate(4, 1, 0), ValueError);
  const DepthAggregate aggregate(4, 2);
  EXPECT_THROW(aggregate.forward(at::zeros({2, 4})), c10::ValueError);
  EXPECT_THROW(aggregate.forward(at::zeros({3, 1, 1, 4})), c10::ValueError);
  EXPECT_THROW(aggregate.forward(at::zeros({2, 1, 1, 5})), c10::ValueError);
  EXPECT_THROW(aggregate.forward(at::zeros({2, 1, 1, 4}, at::kDouble)), c10::TypeError);
}

}  // namespace
}  // namespace paperlab::mudd
