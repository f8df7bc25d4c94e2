// A toy network of blocks that read streams, against the same network from LibTorch's operators
// and plain autograd.

#include "paperlab/ops/depth_step.h"

#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/rsqrt.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/tanh.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "paperlab/core/rng.h"
#include "paperlab/ops/connection_weights.h"
#include "paperlab/ops/depth_aggregate.h"

namespace paperlab::ops {
namespace {

using Tensors = std::vector<at::Tensor>;
using Sources = std::vector<std::int64_t>;

at::Tensor normal(at::IntArrayRef shape, std::uint64_t stream, double scale = 1.0) {
  at::Tensor x = at::zeros(shape, at::kDouble);
  for (std::int64_t i = 0; i < x.numel(); ++i) {
    x.mutable_data_ptr<double>()[i] =
        scale * philox_normal(11, stream, static_cast<std::uint64_t>(i));
  }
  return x;
}

// What carries the states of a pass: ours, or the definition.
class Depth {
 public:
  virtual ~Depth() = default;
  virtual DepthStep push(const at::Tensor& base, const at::Tensor& delta,
                         const DepthWeights& weights, const Sources& sources) = 0;
};

class Ours final : public Depth {
 public:
  Ours(std::int64_t capacity, const at::Tensor& first) : states_(capacity, first) {}

  DepthStep push(const at::Tensor& base, const at::Tensor& delta, const DepthWeights& weights,
                 const Sources& sources) override {
    return states_.push(base, delta, weights, sources);
  }

 private:
  DepthStates states_;
};

at::Tensor weights_by_definition(const at::Tensor& x, const DepthWeights& in) {
  const auto [ways, sources] = std::pair(in.bias.size(0), in.bias.size(-1));
  if (!in.w1.defined()) {
    return in.bias.dim() == 4
               ? in.bias
               : in.bias.view({ways, 1, 1, sources}).expand({ways, x.size(0), x.size(1), sources});
  }
  const at::Tensor n = x * at::rsqrt(x.square().mean(-1, true) + in.eps);
  const at::Tensor h = at::gelu(at::matmul(n, in.w1), in.gelu == "exact" ? "none" : "tanh");
  return at::matmul(h, in.w2)
      .view({x.size(0), x.size(1), ways, sources})
      .add(in.bias)
      .permute({2, 0, 1, 3});
}

class Definition final : public Depth {
 public:
  explicit Definition(const at::Tensor& first) : states_({first}) {}

  DepthStep push(const at::Tensor& base, const at::Tensor& delta, const DepthWeights& weights,
                 const Sources& sources) override {
    const at::Tensor newest = delta.defined() ? base + delta : base;
    states_.push_back(newest);
    DepthStep step{newest, {}};
    if (weights.bias.defined()) {
      Tensors read;
      for (const std::int64_t source : sources) {
        read.push_back(states_[static_cast<std::size_t>(source)]);
      }
      const at::Tensor made = weights_by_definition(newest, weights);
      const at::Tensor x = at::stack(read, -1);  // [B, T, D, J]
      for (std::int64_t way = 0; way < made.size(0); ++way) {
        step.streams.push_back((x * made.select(0, way).unsqueeze(2)).sum(-1));
      }
    }
    return step;
  }

 private:
  Tensors states_;
};

enum class Kind { kGenerated, kStatic, kGiven, kNone };

struct Case {
  std::string name;
  std::int64_t batch = 2;
  std::int64_t length = 3;
  std::int64_t width = 5;
  std::int64_t ways = 4;
  std::int64_t dilation = 1;
  std::int64_t window = 0;  // 0: all
  Kind kind = Kind::kGenerated;
  std::string gelu = "exact";
  std::int64_t period = 1;  // aggregates after every so many pushes
  bool has_delta = true;
  bool uses_newest = false;
  double gain = 1.0;  // of the matrices
  at::ScalarType dtype = at::kDouble;
  std::optional<std::size_t> trained = std::nullopt;  // the one parameter with a gradient
};

void PrintTo(const Case& test, std::ostream* out) { *out << test.name; }

constexpr std::int64_t kPushes = 6;

Sources sources_of(const Case& test, std::int64_t newest) {
  Sources sources;
  for (std::int64_t j = 0; j <= newest; ++j) {
    const bool is_read = test.window > 0 ? j == 0 || j > newest - test.window
                                         : j % test.dilation == newest % test.dilation;
    if (is_read) {
      sources.push_back(j);
    }
  }
  return sources;
}

struct Network {
  explicit Network(const Case& of_test) : test(of_test) {
    const auto leaf = [&](at::IntArrayRef shape, double scale) {
      at::Tensor x = normal(shape, parameters.size(), scale).to(test.dtype);
      x.set_requires_grad(!test.trained.has_value() || *test.trained == parameters.size());
      parameters.push_back(x);
      return x;
    };
    const double scale = test.gain / std::sqrt(static_cast<double>(test.width));
    first = leaf({test.batch, test.length, test.width}, 1.0);
    for (std::int64_t i = 1; i <= kPushes; ++i) {
      blocks.push_back(leaf({test.width, test.width}, scale));
      const auto count = static_cast<std::int64_t>(sources_of(test, i).size());
      DepthWeights made;
      made.gelu = test.gelu;
      if (test.kind == Kind::kGenerated && i % test.period == 0) {
        made.w1 = leaf({7, test.width}, scale).t();
        made.w2 = leaf({7, test.ways * count}, 0.2);
      }
      if (test.kind != Kind::kNone && i % test.period == 0) {
        made.bias = test.kind == Kind::kGiven
                        ? leaf({test.ways, test.batch, test.length, count}, 0.3)
                        : leaf({test.ways, count}, 0.3);
      }
      weights.push_back(made);
    }
  }

  // The last stream carries on, the others enter a product; likewise the newest state.
  at::Tensor run(Depth& depth, std::int64_t pushes = kPushes) const {
    Tensors streams(static_cast<std::size_t>(test.ways), first);
    at::Tensor loss = at::zeros({}, first.options());
    for (std::int64_t i = 1; i <= pushes; ++i) {
      const auto block = static_cast<std::size_t>(i - 1);
      at::Tensor product = at::matmul(streams[0], blocks[block]);
      for (const at::Tensor& stream : streams) {
        product = at::tanh(product * (1.0 + stream));
      }
      const at::Tensor& base = streams.back();
      DepthStep step = test.has_delta
                           ? depth.push(base, product, weights[block], sources_of(test, i))
                           : depth.push(base + product, {}, weights[block], sources_of(test, i));
      std::fill(streams.begin(), streams.end(), step.newest);
      std::copy(step.streams.begin(), step.streams.end(), streams.begin());
      loss = loss + (test.uses_newest ? 0.1 * step.newest.square().sum() : 0.0 * loss);
    }
    for (std::size_t way = 0; way < streams.size(); ++way) {
      loss = loss + static_cast<double>(way + 1) * streams[way].sin().sum();
    }
    return loss;
  }

  at::Tensor run_ours() const {
    Ours ours(kPushes + 1, first);
    return run(ours);
  }

  at::Tensor run_definition() const {
    Definition definition(first);
    return run(definition);
  }

  Case test;
  Tensors parameters;
  at::Tensor first;
  Tensors blocks;
  std::vector<DepthWeights> weights;
};

Tensors gradients_of(const at::Tensor& loss, const Tensors& inputs, bool keeps = false) {
  return torch::autograd::grad({loss}, inputs, {}, keeps, false, /*allow_unused=*/true);
}

at::Tensor or_zeros(const at::Tensor& grad, const at::Tensor& like) {
  return grad.defined() ? grad : at::zeros(like.sizes(), like.options());
}

// Both networks do the same few thousand operations on numbers of order one, in another order.
void expect_close(const Tensors& got, const Tensors& wanted, const Tensors& like, double bound) {
  ASSERT_EQ(got.size(), wanted.size());
  for (std::size_t i = 0; i < got.size(); ++i) {
    const at::Tensor exact = or_zeros(wanted[i], like[i]).to(at::kDouble);
    const at::Tensor error = (or_zeros(got[i], like[i]).to(at::kDouble) - exact).abs();
    if (error.numel() > 0) {
      const double size = std::max(1.0, exact.abs().max().item<double>());
      EXPECT_LE(error.max().item<double>(), bound * size) << "tensor " << i;
    }
  }
}

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

INSTANTIATE_TEST_SUITE_P(
    Networks, DepthStepTest,
    ::testing::Values(
        Case{.name = "mudd"}, Case{.name = "tanh", .gelu = "tanh"},
        Case{.name = "one_way", .ways = 1}, Case{.name = "two_ways", .ways = 2},
        Case{.name = "three_ways", .ways = 3}, Case{.name = "dilation", .dilation = 2},
        Case{.name = "window", .window = 2}, Case{.name = "period", .dilation = 2, .period = 2},
        Case{.name = "static", .kind = Kind::kStatic}, Case{.name = "given", .kind = Kind::kGiven},
        Case{.name = "given_window", .window = 1, .kind = Kind::kGiven},
        Case{.name = "none", .kind = Kind::kNone}, Case{.name = "newest", .uses_newest = true},
        Case{.name = "newest_period", .period = 3, .uses_newest = true},
        Case{.name = "newest_none", .kind = Kind::kNone, .uses_newest = true},
        Case{.name = "sum", .has_delta = false, .uses_newest = true},
        Case{.name = "decode", .batch = 1, .length = 1},
        Case{.name = "odd", .batch = 3, .length = 7, .width = 37},
        Case{.name = "narrow", .width = 1}, Case{.name = "no_batch", .batch = 0},
        Case{.name = "no_tokens", .length = 0, .kind = Kind::kStatic}),
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

TEST(DepthStep, TensorsWithoutData) {
  const at::Tensor first = at::ones({2, 3, 4}, at::device(at::kMeta)).set_requires_grad(true);
  DepthStates states(2, first);
  const DepthStep step = states.push(first, first,
                                     {.w1 = at::ones({4, 5}, at::device(at::kMeta)),
                                      .w2 = at::ones({5, 6}, at::device(at::kMeta)),
                                      .bias = at::ones({3, 2}, at::device(at::kMeta))},
                                     {0, 1});
  ASSERT_EQ(step.streams.size(), 3U);
  EXPECT_EQ(step.streams[2].sizes(), first.sizes());
  EXPECT_TRUE(step.streams[2].requires_grad());
}

void expect_refused(const std::function<void()>& call, const std::string& part) {
  try {
    call();
    FAIL() << "no error for " << part;
  } catch (const c10::ValueError& error) {
    EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
  } catch (const c10::TypeError& error) {
    EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
  }
}

TEST(DepthStep, WrongArgumentsAreRefused) {
  const at::Tensor x = normal({2, 3, 4}, 0);
  const at::Tensor one = at::ones({1, 2}, at::kDouble);
  const at::Tensor w1 = normal({4, 5}, 1);
  const at::Tensor w2 = normal({5, 2}, 1);
  expect_refused([&] { DepthStates(0, x); }, "DepthStates: capacity must be");
  expect_refused([&] { DepthStates(1, {}); }, "DepthStates: first must be a tensor");
  expect_refused([&] { DepthStates(1, x[0]); }, "DepthStates: first must be [B, T, D]");
  expect_refused([&] { DepthStates(1, x.to(at::kInt)); }, "DepthStates: first must be float32");
  DepthStates states(2, x);
  const auto push = [&](const at::Tensor& base, const at::Tensor& delta,
                        const DepthWeights& weights, const Sources& sources,
                        const std::string& part) {
    expect_refused([&] { states.push(base, delta, weights, sources); },
                   "DepthStates::push: " + part);
  };
  push({}, x, {}, {}, "base must be a tensor");
  push(x[0], {}, {}, {}, "base must be");
  push(x.to(at::kFloat), {}, {}, {}, "base must be of the dtype");
  push(x, x[0], {}, {}, "delta must be");
  push(x, x.to(at::kMeta), {}, {}, "delta must be on the device");
  push(x, x, {.w1 = w1}, {}, "w1 and w2 must come together");
  push(x, x, {.w1 = w1, .w2 = w2}, {}, "w1 and w2 must come together, and with a bias");
  push(x, x, {.w1 = w1[0], .w2 = w2, .bias = one}, {0, 1}, "w1 must be [4, K]");
  push(x, x, {.w1 = w1, .w2 = w1, .bias = one}, {0, 1}, "w2 must be [5, 2]");
  push(x, x, {.bias = one[0]}, {0, 1}, "bias must be [C, J] or [C, 2, 3, J]");
  push(x, x, {.bias = one.to(at::kFloat)}, {0, 1}, "bias must be of the dtype");
  push(x, x, {.bias = one, .eps = 0.0}, {0, 1}, "eps must be");
  push(x, x, {.bias = one, .gelu = "erf"}, {0, 1}, "gelu must be");
  for (const Sources& sources : {Sources{1}, Sources{1, 0}, Sources{1, 1}, Sources{-1, 1},
                                 Sources{0, 2}, Sources{0, 1, 2}, Sources{}}) {
    push(x, x, {.bias = one}, sources, "sources must be 2 state numbers");
  }
  EXPECT_EQ(states.size(), 1);
  states.push(x, x);
  push(x, x, {}, {}, "no state is left of 2");
}

}  // namespace
}  // namespace paperlab::ops
