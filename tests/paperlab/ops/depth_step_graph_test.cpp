// The graph of a pass: who has a gradient, where it lies, and what goes with the graph.

#include "paperlab/ops/depth_step.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/ones.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <utility>

#include "tests/paperlab/ops/depth_step_network.h"

namespace paperlab::ops::depth_test {
namespace {

TEST(DepthStep, ASecondBackwardPassHasTheSameBits) {
  const Network network(Case{.name = "", .uses_newest = true});
  const at::Tensor loss = network.run_ours();
  const Tensors once = gradients_of(loss, network.parameters, /*keeps=*/true);
  Tensors copies;
  for (const at::Tensor& grad : once) {
    copies.push_back(grad.clone());
  }
  const Tensors twice = gradients_of(loss, network.parameters);
  for (std::size_t i = 0; i < once.size(); ++i) {
    EXPECT_TRUE(at::equal(once[i], copies[i])) << i;
    EXPECT_TRUE(at::equal(once[i], twice[i])) << i;
  }
}

TEST(DepthStep, GradientsOfLeavesAddUpAndHaveMemoryOfTheirOwn) {
  const at::Tensor first = normal({1, 2, 3}, 0).set_requires_grad(true);
  const at::Tensor base = normal({1, 2, 3}, 1).set_requires_grad(true);
  const at::Tensor delta = normal({1, 2, 3}, 2).set_requires_grad(true);
  const DepthWeights weights{.bias = normal({2, 2}, 3)};
  at::Tensor wanted;
  for (int run = 1; run <= 3; ++run) {
    DepthStates states(2, first);
    const DepthStep step = states.push(base, delta, weights, {0, 1});
    (step.streams[0].square().sum() + step.streams[1].sum() + base.sum()).backward();
    wanted = run == 1 ? base.grad().clone() : wanted;
    EXPECT_LE((base.grad() - run * wanted).abs().max().item<double>(), 1e-13);
    EXPECT_LE((delta.grad() - run * (wanted - 1)).abs().max().item<double>(), 1e-13);
  }
  EXPECT_NE(base.grad().data_ptr(), delta.grad().data_ptr());
  EXPECT_NE(first.grad().data_ptr(), delta.grad().data_ptr());
}

// A base that a later block reads too, and a hook that keeps its gradient.
TEST(DepthStep, TwoConsumersOfABase) {
  const auto run = [](bool is_ours, Tensors& kept) {
    const at::Tensor first = normal({2, 3, 4}, 0).set_requires_grad(true);
    std::unique_ptr<Depth> depth;
    if (is_ours) {
      depth = std::make_unique<Ours>(4, first);
    } else {
      depth = std::make_unique<Definition>(first);
    }
    const at::Tensor base = first.exp();
    base.register_hook([&kept](const at::Tensor& grad) { kept.push_back(grad); });
    const DepthStep one = depth->push(base, base, {.bias = normal({2, 2}, 1)}, {0, 1});
    const DepthStep two = depth->push(base, one.streams[0], {.bias = normal({2, 3}, 2)}, {0, 1, 2});
    const DepthStep three =
        depth->push(one.newest, base * two.streams[1], {.bias = normal({1, 3}, 3)}, {0, 2, 3});
    const at::Tensor loss = (three.streams[0] * one.streams[1] * base).sum();
    return gradients_of(loss, {first})[0];
  };
  Tensors ours, plain;
  const at::Tensor got = run(true, ours);
  expect_close({got, ours[0]}, {run(false, plain), plain[0]}, {got, got}, 1e-12);
}

TEST(DepthStep, APassWhoseLastStatesAreNotUsed) {
  const Network network(Case{.name = ""});
  for (const std::int64_t used : {1, 3, 5}) {
    const auto loss_of = [&](Depth& depth, std::int64_t pushes) {
      at::Tensor kept;
      at::Tensor x = network.first;
      for (std::int64_t i = 1; i <= pushes; ++i) {
        const DepthStep step =
            depth.push(x, x.sin(), network.weights[static_cast<std::size_t>(i - 1)],
                       sources_of(network.test, i));
        x = step.streams[0];
        kept = i == used ? step.streams[1] * step.streams[3] : kept;
      }
      return kept.sum();
    };
    Ours ours(kPushes + 1, network.first);
    Definition definition(network.first);
    expect_close(gradients_of(loss_of(ours, kPushes), network.parameters),
                 gradients_of(loss_of(definition, used), network.parameters), network.parameters,
                 1e-12);
  }
}

// The second pass is recorded before the first goes back; then one backward pass over both.
TEST(DepthStep, TwoPassesDoNotMix) {
  const Network one(Case{.name = ""});
  const Network two(Case{.name = "", .window = 2, .uses_newest = true});
  const at::Tensor first_loss = one.run_ours();
  const at::Tensor second_loss = two.run_ours();
  expect_close(gradients_of(first_loss, one.parameters, true),
               gradients_of(one.run_definition(), one.parameters), one.parameters, 1e-12);
  expect_close(gradients_of(second_loss, two.parameters, true),
               gradients_of(two.run_definition(), two.parameters), two.parameters, 1e-12);
  Tensors both = one.parameters;
  both.insert(both.end(), two.parameters.begin(), two.parameters.end());
  expect_close(gradients_of(first_loss * second_loss, both),
               gradients_of(one.run_definition() * two.run_definition(), both), both, 1e-12);
}

TEST(DepthStep, OneParameterHasAGradient) {
  constexpr std::size_t kParameters = 1 + 4 * kPushes;
  for (std::size_t trained = 0; trained < kParameters; ++trained) {
    const Network network(Case{.name = "", .uses_newest = trained % 2 == 1, .trained = trained});
    ASSERT_EQ(network.parameters.size(), kParameters);
    const Tensors one = {network.parameters[trained]};
    expect_close(gradients_of(network.run_ours(), one), gradients_of(network.run_definition(), one),
                 one, 1e-12);
  }
}

TEST(DepthStep, OneParameterWantsAGradient) {
  const Network network(Case{.name = ""});
  const Tensors all = gradients_of(network.run_ours(), network.parameters);
  for (std::size_t i = 0; i < network.parameters.size(); ++i) {
    EXPECT_TRUE(at::equal(gradients_of(network.run_ours(), {network.parameters[i]})[0], all[i]));
  }
}

// A push without gradients in a pass that has them.
TEST(DepthStep, AConstantStateInTheMiddle) {
  const auto run = [](Depth& depth, const at::Tensor& first) {
    const at::Tensor bias = at::ones({1, 2}, at::kDouble);
    const DepthStep one = depth.push(first, first.sin(), {.bias = bias}, {0, 1});
    DepthStep two;
    {
      const at::NoGradGuard no_grad;
      two = depth.push(one.streams[0], one.streams[0], {.bias = bias}, {1, 2});
    }
    const DepthStep three = depth.push(two.streams[0], one.newest,
                                       {.bias = at::ones({1, 4}, at::kDouble)}, {0, 1, 2, 3});
    return (three.streams[0].square() + two.newest).sum();
  };
  const at::Tensor first = normal({2, 3, 4}, 0).set_requires_grad(true);
  Ours ours(4, first);
  Definition definition(first);
  expect_close(gradients_of(run(ours, first), {first}),
               gradients_of(run(definition, first), {first}), {first}, 1e-12);
}

TEST(DepthStep, StridedInputsAndGradients) {
  const at::Tensor wide = normal({4, 3, 5}, 0).set_requires_grad(true);
  const auto run = [](Depth& depth, const at::Tensor& x) {
    const DepthStep step =
        depth.push(x, x.expand(x.sizes()), {.bias = at::ones({2, 2}, at::kDouble)}, {0, 1});
    return (step.streams[0].transpose(0, 2) * step.streams[1].transpose(0, 2).sin()).sum() +
           step.streams[1].sum();
  };
  const at::Tensor x = wide.transpose(0, 2);
  Ours ours(2, x);
  Definition definition(x);
  expect_close(gradients_of(run(ours, x), {wide}), gradients_of(run(definition, x), {wide}), {wide},
               1e-12);
}

TEST(DepthStep, GradientsOfAllStatesShareOneBuffer) {
  const at::Tensor first = normal({2, 3, 4}, 0).set_requires_grad(true);
  Tensors kept;
  DepthStates states(4, first.sin());
  at::Tensor x = first;
  for (std::int64_t i = 1; i < 4; ++i) {
    x = x.cos();
    x.register_hook([&kept](const at::Tensor& grad) { kept.push_back(grad); });
    Sources sources;
    for (std::int64_t j = 0; j <= i; ++j) {
      sources.push_back(j);
    }
    x = states.push(x, {}, {.bias = at::ones({1, i + 1}, at::kDouble)}, sources).streams[0];
  }
  x.sum().backward();
  ASSERT_EQ(kept.size(), 3U);
  EXPECT_EQ(kept[0].storage().data_ptr().get(), kept[1].storage().data_ptr().get());
  EXPECT_EQ(kept[0].storage().data_ptr().get(), kept[2].storage().data_ptr().get());
}

TEST(DepthStep, StatesThatNobodyTrainsHaveNoGradient) {
  const at::Tensor x = normal({2, 3, 4}, 0);
  const at::Tensor bias = at::ones({1, 2}, at::kDouble).set_requires_grad(true);
  DepthStates states(3, x);
  const DepthStep one = states.push(x, x, {.bias = bias}, {0, 1});
  EXPECT_FALSE(one.newest.requires_grad());
  EXPECT_TRUE(one.streams[0].requires_grad());
  EXPECT_TRUE(states.push(one.streams[0], {}).newest.requires_grad());
}

TEST(DepthStep, BuffersGoWithTheGraph) {
  using Weak = c10::weak_intrusive_ptr<c10::StorageImpl>;
  std::optional<Weak> states_memory, gradients_memory;
  {
    const Network network(Case{.name = ""});
    at::Tensor loss;
    {
      const at::Tensor x = network.first.sin();
      DepthStates states(2, x);
      const DepthStep step = states.push(x, x, network.weights[0], {0, 1});
      states_memory.emplace(step.newest.storage().getWeakStorageImpl());
      x.register_hook([&](const at::Tensor& grad) {
        gradients_memory.emplace(grad.storage().getWeakStorageImpl());
      });
      loss = step.streams[0].sum() + step.streams[2].sum();
    }
    EXPECT_FALSE(states_memory->expired());
    gradients_of(loss, network.parameters);
    EXPECT_TRUE(states_memory->expired());
    EXPECT_TRUE(gradients_memory.has_value() && gradients_memory->expired());
  }
}

TEST(DepthStep, ItIsDifferentiableOnce) {
  const Network network(Case{.name = ""});
  const at::Tensor loss = network.run_ours();
  const Tensors grads = torch::autograd::grad({loss}, {network.parameters[0]}, {}, true, true);
  EXPECT_THROW(torch::autograd::grad({grads[0].square().sum()}, {network.parameters[0]}),
               c10::Error);
}

// Gradients of matrices that lie as linear layers have them lie likewise, so that nobody copies
// them.
TEST(DepthStep, GradientsLieAsTheirMatrices) {
  const Network network(Case{.name = "", .lies_as_linear = true});
  const Tensors grads = gradients_of(network.run_ours(), network.parameters);
  for (std::size_t i = 0; i < grads.size(); ++i) {
    EXPECT_EQ(grads[i].strides(), network.parameters[i].strides()) << i;
  }
}

}  // namespace
}  // namespace paperlab::ops::depth_test
