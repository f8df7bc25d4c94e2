#include "paperlab/mudd/modules.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/allclose.h>
#include <ATen/ops/einsum.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/zeros.h>
#include <c10/util/Exception.h>
#include <gtest/gtest.h>

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
